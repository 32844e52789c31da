"""Noise is a function of the seed and the place alone, and its bits are the same in any language."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketdraft.runtime.noise import Lane, Noise, _output, largest

EVERY = np.arange(4096)


def test_the_hash_is_splitmix64():
    """The published generator's first outputs for the seed 1234567."""
    golden = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [_output(1234567, index) for index in range(5)] == golden


def test_golden_values_that_a_port_must_give():
    """The top 52 bits of the hash: integers, so equal to the bit."""

    def bits(noise: Noise, lane: Lane, position: int, token: int) -> int:
        return int(noise.uniforms(lane, position, np.array([token]))[0] * 2**52)

    assert bits(Noise(0), Lane.TARGET, 0, 0) == GOLDEN[0]
    assert bits(Noise(7), Lane.DRAFT, 41, 262143) == GOLDEN[1]
    assert bits(Noise(2**64 - 1), Lane.ACCEPT, 2**31, 5) == GOLDEN[2]
    assert bits(Noise(7).child(41), Lane.TARGET, 41, 5) == GOLDEN[3]
    assert Noise(7).gumbel(Lane.TARGET, 3, np.arange(3)) == pytest.approx(GUMBEL, abs=1e-12)


GOLDEN = (624691647844299, 973088152921094, 3188520900359919, 1899548728251444)
GUMBEL = (0.013105363799446624, 0.22364012538808403, -0.9936682129036436)


def test_one_number_and_the_first_of_many_are_the_same():
    noise = Noise(3)
    assert noise.uniform(Lane.ACCEPT, 9) == noise.uniforms(Lane.ACCEPT, 9, EVERY)[0]


def test_a_token_s_noise_does_not_depend_on_the_list_it_is_in():
    noise, some = Noise(3), np.array([4000, 7, 7, 123])
    assert (noise.uniforms(Lane.TARGET, 5, some) == noise.uniforms(Lane.TARGET, 5, EVERY)[some]).all()


def test_every_part_of_the_place_changes_the_noise():
    first = Noise(3).uniforms(Lane.TARGET, 5, EVERY)
    others = [
        Noise(4).uniforms(Lane.TARGET, 5, EVERY),
        Noise(3).uniforms(Lane.DRAFT, 5, EVERY),
        Noise(3).uniforms(Lane.TARGET, 6, EVERY),
        Noise(3).child(0).uniforms(Lane.TARGET, 5, EVERY),
        Noise(3).child(5).uniforms(Lane.TARGET, 5, EVERY),
        first[::-1],
    ]
    for one, other in itertools.combinations([first, *others], 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(len(EVERY))


@pytest.mark.parametrize("along", ["tokens", "positions", "seeds", "children"])
def test_uniforms_are_uniform(along):
    if along == "tokens":
        found = Noise(1).uniforms(Lane.TARGET, 0, np.arange(65536))
    elif along == "positions":
        found = np.array([Noise(1).uniform(Lane.ACCEPT, position) for position in range(65536)])
    elif along == "seeds":
        found = np.array([Noise(seed).uniform(Lane.ACCEPT, 3) for seed in range(65536)])
    else:
        found = np.array([Noise(1).child(number).uniform(Lane.ACCEPT, number) for number in range(65536)])
    assert 0 < found.min() < found.max() < 1
    counts = np.histogram(found, 64, (0, 1))[0]
    assert ((counts - 1024) ** 2 / 1024).sum() < 63 + 5 * np.sqrt(2 * 63)
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 5 / np.sqrt(65536)


def test_the_extremes_are_neither_0_nor_1():
    assert 0.5 * 2.0**-52 > 0
    assert (2.0**52 - 1 + 0.5) * 2.0**-52 < 1


def test_a_draw_is_the_argmax_of_gumbel_noise():
    weights = np.random.default_rng(0).dirichlet(np.ones(50)) * 3
    for position in range(300):
        scores = np.log(weights) + Noise(1).gumbel(Lane.DRAFT, position, np.arange(50))
        assert Noise(1).draw(weights, Lane.DRAFT, position) == scores.argmax()


def test_a_draw_never_takes_what_has_no_weight():
    weights = np.array([0.0, 1e-300, 0.0, 2e-300])
    assert {Noise(1).draw(weights, Lane.TARGET, position) for position in range(60)} == {1, 3}


def test_two_distributions_drawn_alike_agree_as_often_as_the_formula_says():
    """P(both draw x) = 1 / sum over y of max(p_y / p_x, q_y / q_x); the sum over x lies within the known bounds."""
    p, q = np.random.default_rng(0).dirichlet(np.ones(6), 2)
    same = sum(1 / np.maximum(p / p[x], q / q[x]).sum() for x in range(6))
    distance = np.abs(p - q).sum() / 2
    assert (1 - distance) / (1 + distance) <= same <= 1 - distance
    rounds = 20_000
    drawn = [(Noise(1).draw(p, Lane.TARGET, i), Noise(1).draw(q, Lane.TARGET, i)) for i in range(rounds)]
    assert np.mean([a == b for a, b in drawn]) == pytest.approx(same, abs=4 * np.sqrt(same * (1 - same) / rounds))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9).filter(any), st.integers(0, 2**64 - 1), st.integers(1, 9))
def test_a_ranking_is_what_would_be_drawn_without_those_before(weights, seed, count):
    left, noise = np.array(weights, np.float64), Noise(seed)
    found = noise.ranking(left, Lane.TARGET, 7, count)
    assert len(found) == min(count, np.count_nonzero(left))
    for token in found:
        assert token == noise.draw(left, Lane.TARGET, 7)
        left[token] = 0.0


def test_of_equal_scores_the_lower_comes_first_and_what_is_ruled_out_never():
    assert largest(np.array([1.0, 3.0, -np.inf, 3.0]), 9) == [1, 3, 0]
    assert largest(np.array([1.0, 3.0, -np.inf, 3.0]), 1) == [1]
