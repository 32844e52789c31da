"""Schedules against simulation: what they promise comes true, and no fixed length is better."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketdraft.runtime.cost import RoundCost, best_length
from pocketdraft.runtime.schedule import Judged, Schedule, best

COSTS = [
    RoundCost.flat(0.1, 12),
    RoundCost(((1, 1.0), (2, 1.1), (5, 1.4), (9, 2.5)), 0.1, 0.05),
    RoundCost(tuple((width, 0.6 + 0.4 * width) for width in range(1, 10)), 0.05),
]


def judged(*drafts: tuple[int, int, float]) -> Judged:
    """By (tenth, how many, share accepted)."""
    counts = {
        (tenth, was): round(n * (share if was else 1 - share)) for tenth, n, share in drafts for was in (True, False)
    }
    return Judged.of(counts)


def simulated(schedule: Schedule, found: Judged, cost: RoundCost, rounds: int = 20_000) -> float:
    random, tokens, seconds = np.random.default_rng(1), 0, 0.0
    for _ in range(rounds):
        confidences: list[float] = []
        standing, accepted = True, 0
        while not schedule.enough(confidences) and len(confidences) < schedule.longest:
            tenth = int(random.choice(len(found.shares), p=found.frequencies))
            confidences.append(min(tenth / 10 + 0.05, 1.0))
            standing = standing and bool(random.random() < found.shares[tenth])
            accepted += standing
        tokens += accepted + 1
        seconds += cost.seconds(len(confidences))
    return tokens / seconds


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(
    "drafts", [[(9, 9_000, 0.95), (3, 3_000, 0.2)], [(5, 9_000, 0.5)], [(8, 9_000, 0.9), (5, 9_000, 0.3)]]
)
def test_a_schedule_gives_what_it_promises(cost, drafts):
    found = judged(*drafts)
    schedule, promised = best(cost, found, 12)
    assert simulated(schedule, found, cost) == pytest.approx(promised, rel=0.02)


@settings(deadline=None)
@given(st.sampled_from(COSTS), st.floats(0, 1), st.floats(0, 1), st.integers(1, 9_000))
def test_no_fixed_length_beats_it(cost, sure, doubtful, often):
    found = judged((9, 9_000, sure), (2, often, doubtful))
    mean = float(found.frequencies @ found.shares)
    _, fixed = best_length(cost, [mean])
    assert best(cost, found, 12)[1] > 0.98 * fixed


def test_one_that_knows_nothing_stops_at_the_best_fixed_length():
    schedule, speed = best(COSTS[1], judged((6, 9_000_000, 0.6)), 12)
    drafts, fixed = best_length(COSTS[1], [0.6])
    stops = next(n for n in range(13) if schedule.enough([0.65] * n))
    assert (stops, speed) == (drafts, pytest.approx(fixed, rel=0.01))


def test_where_no_draft_pays_it_is_off():
    linear = RoundCost(tuple((width, float(width)) for width in range(1, 10)), draft_s=0.1)
    schedule, speed = best(linear, judged((9, 9_000, 0.95)), 8)
    assert (schedule.longest, speed) == (0, 1.0)
    assert schedule.enough([])


def test_the_widest_graph_is_the_end_however_sure():
    schedule, _ = best(COSTS[1], judged((10, 9_000, 1.0)), 99)
    assert schedule.longest == 8
    assert not schedule.enough([1.0] * 7)
    assert schedule.enough([1.0] * 8)
