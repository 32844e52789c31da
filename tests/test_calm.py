"""Confident early exit: its measures, its rule, and thresholds that keep their promise on texts not seen."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketdraft.runtime.calm import (
    NEVER,
    ExitRule,
    calibrate,
    cosine,
    digest,
    divergence,
    excess_risk,
    gap,
    hoeffding_bentkus,
    probability,
)
from pocketdraft.runtime.errors import PocketdraftError

finite = st.floats(-30, 30, width=32)
tokens = st.lists(st.integers(0, 3), max_size=8)
shares = st.floats(0, 1)


def rules(*thresholds: float) -> list[ExitRule]:
    return [ExitRule("gap", threshold, 64) for threshold in thresholds]


# --- how sure an exit is


@given(st.lists(finite, min_size=2, max_size=20), finite)
def test_the_gap_is_that_of_the_softmax_whatever_is_added_to_the_logits(logits, shift):
    row = np.array(logits, np.float32)
    weights = np.exp(row.astype(np.float64) - row.max())
    second, first = np.sort(weights / weights.sum())[-2:]
    assert gap(row) == pytest.approx(first - second, abs=1e-12)
    both = gap(np.stack([row, row]).astype(np.float64) + np.array([[0.0], [shift]]))
    assert both == pytest.approx(gap(row), abs=1e-9)


def test_the_gap_of_a_tie_is_0_and_of_a_sure_exit_1():
    assert gap(np.array([3.0, 3.0, -9.0], np.float32)) == 0
    assert gap(np.array([500.0, -500.0, 0.0], np.float32)) == 1


def test_the_cosine_sees_direction_alone():
    state = np.array([1.0, 2.0, -3.0], np.float32)
    assert cosine(state, 7 * state) == pytest.approx(1)
    assert cosine(state, -state) == pytest.approx(-1)
    assert cosine(state, np.array([2.0, -1.0, 0.0], np.float32)) == 0
    assert cosine(state, 0 * state) == 0
    assert cosine(np.stack([state, -state]), state) == pytest.approx([1, -1])


@given(st.floats(-1000, 1000))
def test_a_score_s_probability_is_within_0_and_1_and_symmetric(score):
    low, high = probability(np.array([-abs(score), abs(score)]))
    assert 0 <= low <= 0.5 <= high <= 1
    assert low + high == pytest.approx(1)
    assert low == pytest.approx(math.exp(-abs(score)) / (1 + math.exp(-abs(score))), abs=1e-12)


# --- when to leave


@given(shares, st.integers(1, 200))
def test_the_threshold_falls_through_the_text_as_in_the_paper(threshold, length):
    rule = ExitRule("gap", threshold, length)
    found = [rule.at(t) for t in range(2 * length)]
    if not rule.never:
        assert found[0] == pytest.approx(0.9 * threshold + 0.1)
        assert rule.at(length) == pytest.approx(0.9 * threshold + 0.1 * math.exp(-4))
    assert all(0 <= late <= early <= 1 for early, late in pairwise(found))
    assert {ExitRule("gap", threshold, length, None).at(t) for t in range(length)} == {threshold}


@given(shares, shares, shares, st.integers(0, 99))
def test_who_leaves_at_a_high_threshold_leaves_at_a_lower_one(one, other, confidence, t):
    low, high = sorted((one, other))
    assert ExitRule("cosine", high, 100).exits(t, confidence) <= ExitRule("cosine", low, 100).exits(t, confidence)


@given(st.integers(0, 500))
def test_threshold_1_never_exits_though_the_decay_brings_it_below(t):
    assert not ExitRule("classifier", NEVER, 100).exits(t, 1.0)
    assert ExitRule("classifier", 0.99, 100).exits(t + 100, 1.0)


def test_a_confidence_that_is_no_number_takes_no_exit():
    assert not ExitRule("gap", 0.0, 8).exits(7, math.nan)
    assert ExitRule("gap", 0.0, 8).exits(7, 0.5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": math.nan}, "threshold is nan"),
        ({"length": 0}, "length is 0"),
        ({"tau": -1.0}, "tau is -1.0"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(fields, said):
    with pytest.raises(PocketdraftError, match=said):
        ExitRule(**{"measure": "gap", "threshold": 0.5, "length": 8, **fields})


# --- how much a text was changed


def longest_common(text: list[int], other: list[int]) -> int:
    """By trying all, the longest first."""
    for size in range(min(len(text), len(other)), 0, -1):
        if set(combinations(text, size)) & set(combinations(other, size)):
            return size
    return 0


@given(tokens, tokens)
@settings(deadline=None)
def test_the_divergence_is_one_less_rouge_l(text, other):
    common = longest_common(text, other)
    if common:
        precision, recall = Fraction(common, len(text)), Fraction(common, len(other))
        wanted = 1 - float(2 * precision * recall / (precision + recall))
    else:
        wanted = float(bool(text or other))
    assert divergence(text, other) == pytest.approx(wanted) == divergence(other, text)
    assert (divergence(text, other) == 0) == (text == other)


def test_a_token_put_in_costs_itself_alone():
    assert divergence([1, 2, 3, 4], [9, 1, 2, 3, 4]) == pytest.approx(1 / 9)


def test_only_what_is_lost_against_the_reference_is_a_risk():
    reference, full, early = [1, 2, 3, 4], [1, 2, 9, 9], [1, 9, 9, 9]
    assert excess_risk(early, full, reference) == pytest.approx(0.25)
    assert excess_risk(full, early, reference) == 0


# --- the test of a threshold


@given(st.integers(1, 60), st.floats(0.01, 0.99), shares)
def test_the_p_value_is_the_paper_s(count, delta, risk):
    low = Fraction(min(risk, delta)).limit_denominator(10**6)
    kl = sum(float(a) * math.log(float(a) / b) for a, b in ((low, delta), (1 - low, 1 - delta)) if a)
    at_most = math.ceil(count * risk)
    cdf = sum(math.comb(count, k) * delta**k * (1 - delta) ** (count - k) for k in range(at_most + 1))
    wanted = min(1.0, math.exp(-count * kl), math.e * cdf)
    assert hoeffding_bentkus(risk, count, delta) == pytest.approx(wanted, rel=1e-3)


@given(st.integers(1, 100), st.floats(0.01, 0.99), shares, shares)
def test_less_risk_is_stronger_evidence(count, delta, one, other):
    low, high = sorted((one, other))
    assert hoeffding_bentkus(low, count, delta) <= hoeffding_bentkus(high, count, delta) + 1e-12
    assert hoeffding_bentkus(low, 2 * count, delta) <= hoeffding_bentkus(low, count, delta) * (1 + 1e-9) or low > 0


@given(st.integers(1, 40), st.sampled_from([0.1, 0.3, 0.5]), st.sampled_from([0.01, 0.05, 0.2]))
def test_a_p_value_below_its_level_is_no_likelier_than_the_level(count, delta, level):
    """Of losses that are 0 or 1 with mean delta, the boundary of what it is to exclude: by exact probabilities."""
    chance = sum(
        math.comb(count, ones) * delta**ones * (1 - delta) ** (count - ones)
        for ones in range(count + 1)
        if hoeffding_bentkus(ones / count, count, delta) <= level
    )
    assert chance <= level


# --- which threshold


def losses(*means: float, texts: int = 100) -> np.ndarray:
    return np.repeat(np.array(means)[:, None], texts, 1)


TEXTS = [[index] for index in range(100)]


def test_the_lowest_certified_threshold_is_chosen():
    found = calibrate(rules(0.9, 0.5, 0.1), losses(0.0, 0.05, 0.6), TEXTS, 0.2)
    assert (found.rule, found.risk, found.texts) == (rules(0.5)[0], pytest.approx(0.05), 100)
    assert found.p_value == hoeffding_bentkus(0.05, 100, 0.2) <= 0.05
    assert found.texts_sha256 == digest(TEXTS)
    assert "gap > 0.5 was certified" in found.sentence


def test_a_threshold_below_a_failed_one_is_not_even_tried():
    found = calibrate(rules(0.9, 0.5, 0.1), losses(0.0, 0.6, 0.0), TEXTS, 0.2)
    assert found.rule.threshold == 0.9


def test_a_p_value_above_epsilon_certifies_nothing_however_little_above():
    found = calibrate(rules(0.9), losses(0.0, texts=14), TEXTS[:14], 0.2, epsilon=0.04)
    assert found.rule.never
    assert 0.04 < found.p_value < 0.05
    assert calibrate(rules(0.9), losses(0.0, texts=14), TEXTS[:14], 0.2, epsilon=0.05).rule.threshold == 0.9


def test_it_is_the_mean_over_texts_that_counts():
    found = calibrate(rules(0.9), np.array([[1.0] * 5 + [0.0] * 95]), TEXTS, 0.2)
    assert found.risk == pytest.approx(0.05)


def test_all_may_be_certified():
    assert calibrate(rules(0.9, 0.5), losses(0.0, 0.0), TEXTS, 0.2).rule.threshold == 0.5


def test_where_nothing_is_certified_no_token_exits():
    found = calibrate(rules(0.9, 0.5), losses(0.19, 0.0), TEXTS, 0.2)
    assert found.rule.never
    assert (found.risk, found.p_value) == (0.0, pytest.approx(hoeffding_bentkus(0.19, 100, 0.2)))
    assert "No threshold of gap was certified" in found.sentence


def test_too_few_texts_certify_nothing():
    assert calibrate(rules(0.9), losses(0.0, texts=4), TEXTS[:4], 0.2).rule.never


def test_the_digest_tells_texts_apart():
    assert len({digest(texts) for texts in ([[1, 2]], [[1], [2]], [[12]], [[1, 2], []], [])}) == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"delta": 0.0}, "delta is 0.0"),
        ({"delta": math.nan}, "delta is nan"),
        ({"epsilon": 1.0}, "epsilon is 1.0"),
        ({"rules": rules(0.5, 0.9)}, "the highest first"),
        ({"rules": rules(0.5, 0.5)}, "the highest first"),
        ({"rules": [ExitRule("gap", 0.9, 64), ExitRule("cosine", 0.5, 64)]}, "thresholds alone"),
        ({"losses": losses(0.0, 1.5)}, "from 0.0 to 1.5"),
        ({"losses": losses(0.0, math.nan)}, "nan"),
        ({"losses": losses(0.0)}, "one loss a rule and text"),
        ({"texts": []}, "one loss a rule and text"),
    ],
)
def test_a_calibration_that_proves_nothing_is_refused(change, said):
    plain = {"rules": rules(0.9, 0.5), "losses": losses(0.0, 0.0), "texts": TEXTS, "delta": 0.2}
    with pytest.raises(PocketdraftError, match=said):
        calibrate(**{**plain, **change})


@pytest.mark.parametrize("shape", ["all or nothing", "spread"])
@pytest.mark.parametrize("at", [0.199, 0.2, 0.201])
def test_known_risks_hold_in_95_of_100_resamplings(shape, at):
    """A curve of true risks with one threshold at the edge of delta: what is certified is truly within it."""
    delta, means = 0.2, np.array([0.0, 0.02, 0.05, 0.1, 0.15, at, 0.25, 0.4])
    candidates = rules(*np.linspace(0.9, 0.2, len(means)))
    random, held, steps = np.random.default_rng(0), 0, 0
    for _ in range(100):
        if shape == "all or nothing":
            drawn = random.random((len(means), 100)) < means[:, None]
        else:
            drawn = random.beta(2 * means[:, None] + 1e-9, 2 * (1 - means[:, None]), (len(means), 100))
        found = calibrate(candidates, drawn.astype(float), TEXTS, delta)
        step = 0 if found.rule.never else 1 + candidates.index(found.rule)
        held += step == 0 or means[step - 1] <= delta
        steps += step
    assert held >= 95
    assert steps >= 300  # and it is not by certifying nothing
