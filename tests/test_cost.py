"""The cost model against simulation, where both can be computed, and against sums on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedEngine, scripted_manifest

from pocketdraft.runtime.cost import (
    REPEATED,
    SOON_DRAFTED,
    SOON_PLAIN,
    RoundCost,
    SequenceTimes,
    Times,
    best_length,
    expected_tokens,
    expected_tokens_of_tree,
    round_costs,
    tokens_per_s,
)
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.profile import DeviceInfo, DraftingTiming, GraphTiming, HostTiming, Profile, Speed
from pocketdraft.runtime.session import open_session

chances = st.lists(st.floats(0, 1), min_size=1, max_size=8)
STEPS = RoundCost(((1, 1.0), (2, 1.1), (5, 1.4), (9, 2.5)), draft_s=0.2, round_s=0.05)


def timing(name: str, role: str, width: int, seconds: float, filled: int = 0) -> GraphTiming:
    return GraphTiming(
        name=name,
        role=role,
        width=width,
        filled=filled,
        median_s=seconds,
        lower_quartile_s=seconds,
        upper_quartile_s=seconds,
        runs=9,
    )


def profile(*graphs: GraphTiming, host: HostTiming | None = None, **drafters: DraftingTiming) -> Profile:
    return Profile(
        origin="reported",
        source="a test",
        device=DeviceInfo(name="phone"),
        graphs=graphs,
        host=host,
        drafters=drafters,
        speeds=(Speed(model="m", ratio=1.5),),
    )


GRAPHS = (
    timing("decode", "decode", 1, 0.04),
    timing("verify", "verify", 5, 0.06),
    timing("verify_2", "verify", 2, 0.05),
    timing("drafter", "draft", 1, 0.004),
    timing("embedder", "embed", 1, 0.0001),
    timing("per_layer_embedder", "embed_per_layer", 1, 0.0003),
)


@settings(deadline=None)
@given(chances, st.integers(0, 8))
def test_expected_tokens_are_those_of_drafts_refused_by_chance(each, drafts):
    """By all outcomes of a round: k drafts stand with the chance that k are right and the next is not."""
    known = [each[min(k, len(each) - 1)] for k in range(drafts)]
    outcomes = sum((k + 1) * math.prod(known[:k]) * (1 - known[k] if k < drafts else 1.0) for k in range(drafts + 1))
    assert expected_tokens(each, drafts) == pytest.approx(outcomes)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.lists(st.integers(0, 11), min_size=1, max_size=5), st.booleans())
def test_with_the_acceptance_of_its_own_rounds_the_model_gives_their_tokens(drafts, prompt, wrong_half):
    """Only rounds that proposed all `drafts`: the first of a text has none, the last may have fewer."""
    session = open_session(ScriptedEngine(scripted_manifest(400), wrong_half), "mtp", drafts)
    list(session.generate(prompt, 200))
    stats = session.stats
    whole = {accepted: n for (proposed, accepted), n in stats.outcomes.items() if proposed == drafts}
    stats.outcomes.clear()
    stats.outcomes.update({(drafts, accepted): n for accepted, n in whole.items()})
    measured = 1 + stats.accepted / stats.rounds
    assert expected_tokens(stats.conditional_acceptance_by_position(), drafts) == pytest.approx(measured)


@pytest.mark.parametrize("drafts", [1, 2, 4])
def test_predicted_tokens_per_s_are_those_of_a_session_in_modelled_time(drafts):
    """Acceptance of half, as the scripted drafter is wrong on half of the contexts."""
    session = open_session(ScriptedEngine(scripted_manifest(9_000)), "mtp", drafts)
    cost = RoundCost(((1, 1.0), (2, 1.2), (3, 1.3), (5, 1.8)), 0.1, 0.05)
    list(session.generate([1, 2, 3], 3_000))
    seconds = sum(cost.seconds(proposed) * n for (proposed, _), n in session.stats.outcomes.items())
    assert tokens_per_s(cost, [0.5], drafts) == pytest.approx(session.stats.emitted / seconds, rel=0.05)


def test_a_round_runs_the_narrowest_verify_that_takes_its_drafts_and_the_pending_token():
    verify = [1.0, 1.1, 1.4, 1.4, 1.4, 2.5, 2.5, 2.5, 2.5]
    assert [STEPS.seconds(n) for n in range(9)] == pytest.approx([v + 0.2 * n + 0.05 for n, v in enumerate(verify)])
    with pytest.raises(ValueError, match="a verify of 10 tokens, where the widest graph takes 9"):
        STEPS.seconds(9)


@given(chances, st.integers(0, 8))
def test_a_chain_is_the_tree_without_branches(each, drafts):
    known = [each[min(k, len(each) - 1)] for k in range(drafts)]
    assert expected_tokens_of_tree(range(-1, drafts - 1), known) == pytest.approx(expected_tokens(each, drafts))


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0, 0.4), min_size=6, max_size=6), st.integers(0, 99))
def test_a_tree_gives_the_tokens_of_random_walks_down_it(each, seed):
    """Two children of the root, two of the first of them, one of each of those."""
    parents = (-1, -1, 0, 0, 2, 3)
    random, total, walks = np.random.default_rng(seed), 0, 3_000
    for _ in range(walks):
        node, uniform = -1, random.random()
        while True:
            total += 1
            children = [child for child, parent in enumerate(parents) if parent == node]
            edges = np.cumsum([each[child] for child in children])
            taken = int(np.searchsorted(edges, uniform)) if children else 0
            if taken >= len(children):
                break
            node, uniform = children[taken], random.random()
    assert expected_tokens_of_tree(parents, each) == pytest.approx(total / walks, abs=0.08)


def test_a_tree_whose_children_are_too_likely_or_come_before_their_parent_is_refused():
    with pytest.raises(ValueError, match="children of -1 have chances that sum to"):
        expected_tokens_of_tree((-1, -1), (0.6, 0.6))
    with pytest.raises(ValueError, match="node 0 hangs on 1"):
        expected_tokens_of_tree((1, -1), (0.1, 0.1))


def test_a_tree_runs_the_drafter_once_for_each_node_with_children():
    assert STEPS.seconds(6, calls=3) == pytest.approx(2.5 + 3 * 0.2 + 0.05)


@given(chances)
def test_the_best_length_is_the_best_of_all(each):
    drafts, speed = best_length(STEPS, each)
    assert speed == max(tokens_per_s(STEPS, each, n) for n in range(9))
    assert speed == tokens_per_s(STEPS, each, drafts)


def test_where_a_verify_takes_as_long_as_decoding_its_tokens_off_is_best_however_good_the_drafter():
    linear = RoundCost(tuple((width, float(width)) for width in range(1, 10)), draft_s=0.01)
    assert best_length(linear, [0.99])[0] == 0


def test_the_cost_comes_from_the_profile_graph_by_graph():
    cost = RoundCost.of(profile(*GRAPHS, host=HostTiming(round_s=0.001, draft_s=0.0002, lookup_share=0.5)))
    assert cost.verify_s == ((1, 0.04), (2, 0.05), (5, 0.06))
    lookup_s = 0.5 * 0.0004  # of a draft two, its call's and its row's of the verify; of a round the pending token's
    assert (cost.draft_s, cost.round_s) == pytest.approx((0.0042 + 2 * lookup_s, 0.001 + lookup_s))


def test_prompt_lookup_runs_no_draft_graph():
    host = HostTiming(round_s=0.0, draft_s=0.0002)
    assert RoundCost.of(profile(*GRAPHS, host=host), "prompt_lookup").draft_s == pytest.approx(0.0002 + 0.0004)


def test_a_drafter_whose_rounds_were_timed_costs_what_they_took_and_its_own_graphs_verify():
    early = DraftingTiming(verify="exit_verify", drafting_s=0.002, draft_s=0.001)
    graphs = (*GRAPHS, timing("exit_verify_1", "exit_verify", 1, 0.02), timing("exit_verify_5", "exit_verify", 5, 0.03))
    found = profile(*graphs, host=HostTiming(round_s=0.001), early_exit=early)
    cost = RoundCost.of(found, "early_exit")
    assert cost.seconds(0) == RoundCost.of(found, "mtp").seconds(0) == pytest.approx(0.04 + 0.0014)
    assert cost.seconds(4) == pytest.approx(0.03 + 0.002 + 4 * 0.001 + 0.0014)


def test_a_profile_tells_of_the_drafters_that_it_times_and_refuses_where_it_times_none():
    """A phone's has the MTP drafter's graph; without one, prompts can be looked up, which takes none."""
    host = HostTiming(round_s=0.0)
    assert set(round_costs(profile(*GRAPHS, host=host), ["dflash", "mtp", "prompt_lookup"])) == {"mtp", "prompt_lookup"}
    assert set(round_costs(profile(*GRAPHS[:2], host=host), ["mtp", "prompt_lookup"])) == {"prompt_lookup"}
    with pytest.raises(PocketdraftError, match=r"phone \(reported\) does not time the rounds of dflash, early_exit"):
        round_costs(profile(*GRAPHS, host=host), ["dflash", "early_exit"])


@pytest.mark.parametrize(
    ("filled", "seconds"), [(0, 0.04), (100, 0.04), (150, 0.05), (200, 0.06), (900, 0.06), (None, 0.06)]
)
def test_a_fuller_context_costs_what_was_measured_around_it(filled, seconds):
    graphs = (timing("decode", "decode", 1, 0.06, 200), *(g.model_copy(update={"filled": 100}) for g in GRAPHS))
    assert RoundCost.of(profile(*graphs), filled=filled).verify(1) == pytest.approx(seconds)


def test_a_report_without_timings_predicts_nothing():
    with pytest.raises(PocketdraftError, match=r"phone \(reported\) does not time the rounds of mtp; take one"):
        RoundCost.of(profile())


def test_measured_times_are_those_of_late_and_an_unknown_width_lies_between_its_neighbours():
    times = Times([1, 3, 5])
    assert times.cost() is None
    times.add(1, 9.0, 0, 0.0, 0.1)
    assert times.cost() is None, "no draft has been timed"
    for _ in range(40):
        times.add(1, 1.0, 0, 0.0, 0.1)
    times.add(5, 2.0, 4, 1.2, 0.1)
    assert times.cost() == RoundCost(((1, 1.0), (3, 1.5), (5, 2.0)), pytest.approx(0.3), 0.1)


def test_a_width_that_hardly_ran_lies_between_those_beside_it():
    """Its first rounds found its graph cold. The widest has nothing beside it but what it took."""
    times = Times([1, 3, 5, 9])
    for _ in range(REPEATED):
        times.add(1, 1.0, 0, 0.0, 0.1)
        times.add(3, 2.0, 2, 0.2, 0.1)
    times.add(9, 5.0, 8, 0.8, 0.1)
    for _ in range(REPEATED - 1):
        times.add(5, 4.5, 4, 0.4, 0.1)
        assert times.cost().verify_s == ((1, 1.0), (3, 2.0), (5, pytest.approx(3.0)), (9, 5.0))
    times.add(5, 4.5, 4, 0.4, 0.1)
    assert times.cost().verify_s == ((1, 1.0), (3, 2.0), (5, 4.5), (9, 5.0))


def test_what_comes_once_in_a_round_is_not_taken_for_each_draft_s():
    """Nor does one round that prepared its graphs tell what drafts take."""
    times = Times([1, 3])
    times.add(3, 2.0, 8, 9.0, 0.1)
    for _ in range(3):
        times.add(1, 1.0, 0, 0.0, 0.1)
        times.add(3, 2.0, 1, 0.5, 0.1)
        times.add(3, 2.0, 2, 0.7, 0.1)
    cost = times.cost()
    assert (cost.draft_s, cost.drafting_s) == (pytest.approx(0.2), pytest.approx(0.3))
    assert cost.seconds(0) == pytest.approx(1.1), "decoding drafts nothing"
    assert cost.seconds(2, calls=0) == pytest.approx(2.1), "drafts that were looked up"


def test_a_round_that_drafts_at_all_costs_more_than_its_drafts():
    host = HostTiming(round_s=0.001, draft_s=0.0002, drafting_s=0.01)
    cost = RoundCost.of(profile(*GRAPHS[:4], host=host))
    assert cost.seconds(0) == pytest.approx(0.041)
    assert cost.seconds(1) == pytest.approx(0.05 + 0.0042 + 0.011)


def test_rounds_are_timed_soon_after_a_change_between_drafting_and_not():
    """The first after a change finds cold graphs, and those that follow get faster: of both, as many tokens tell."""
    times = Times([1, 5])
    for _ in range(REPEATED):  # the first ones of a width tell in any case
        times.add(1, 1.0, 0, 0.0, 0.0)
        times.add(5, 2.0, 4, 0.4, 0.0)
    added: list[float] = []
    times.add = lambda width, verify_s, *_: added.append(verify_s)
    sequence, seconds = SequenceTimes(times), iter(range(100))
    for width, rounds in ((1, 20), (5, 8), (1, 2), (5, 1), (1, 3)):
        for _ in range(rounds):
            sequence.add(width, float(next(seconds)), width - 1, 0.1, 0.0)
    assert added == [*range(1, 1 + SOON_PLAIN), *range(21, 21 + SOON_DRAFTED), 29, 32, 33]


def test_a_width_that_hardly_ran_is_timed_whenever_it_runs():
    times, draft = Times([1, 5]), (5, 2.0, 4, 0.4, 0.0)
    sequence = SequenceTimes(times)
    for _ in range(REPEATED):
        sequence.add(1, 1.0, 0, 0.0, 0.0)
        sequence.add(*draft)
    assert times.cost() == RoundCost(((1, 1.0), (5, 2.0)), pytest.approx(0.1), 0.0)
