"""Early stop by confidence, in modelled time: a verify takes 1, a draft `cost`."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from rounds import record
from scripted import ScriptedEngine, plain, scripted_manifest

from pocketdraft.runtime import draft_length
from pocketdraft.runtime.cost import REPEATED, RoundCost, SequenceTimes, Times
from pocketdraft.runtime.draft_length import PLAIN_FIRST, PLAIN_KNOWN, TRY_ROUNDS, Confident
from pocketdraft.runtime.drafters.mtp import MTPDrafter
from pocketdraft.runtime.experience import Experience
from pocketdraft.runtime.schedule import schedule
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.stats import Stats

ROUNDS = 1_500
SURE, DOUBTFUL, MOSTLY = 0.97, 0.25, 0.75
Drafter = Callable[[np.random.Generator], tuple[float, float]]  # gives a draft's confidence and chance


def tokens_per_verify(policy: Confident, drafter: Drafter, cost: float, rounds: int = ROUNDS) -> float:
    """Emitted over time, for a drafter whose drafts are accepted by chance."""
    random, stats, time = np.random.default_rng(0), Stats(), 0.0
    for _ in range(rounds):
        confidences: list[float] = []
        right: list[bool] = []
        for _ in range(policy.next(stats)):
            confidence, chance = drafter(random)
            confidences.append(confidence)
            right.append(bool(random.random() < chance))
            if policy.enough(confidences):
                break
        accepted = right.index(False) if False in right else len(right)
        record(stats, confidences, accepted)
        time += 1 + cost * len(right)
    return stats.emitted / time


def best_fixed(chance: float, cost: float) -> float:
    """Of the lengths 1 to 16, where each draft has the same chance whatever the others'."""
    return max(sum(chance**i for i in range(drafts + 1)) / (1 + cost * drafts) for drafts in range(1, 17))


def truthful(random: np.random.Generator) -> tuple[float, float]:
    """Sure of most, and rightly so."""
    confidence = SURE if random.random() < MOSTLY else DOUBTFUL
    return confidence, confidence


def overconfident(random: np.random.Generator) -> tuple[float, float]:
    """Tells the sure from the doubtful, but not by how much."""
    _, chance = truthful(random)
    return 0.95 if chance == SURE else 0.85, chance


def useless(chance: float) -> Drafter:
    """As confident of what is refused as of what is accepted."""
    return lambda random: (float(random.random()), chance)


@pytest.mark.parametrize("cost", [0.05, 0.15, 0.3])
@pytest.mark.parametrize("drafter", [truthful, overconfident])
def test_a_drafter_that_knows_beats_every_fixed_length(drafter, cost):
    fixed = best_fixed(MOSTLY * SURE + (1 - MOSTLY) * DOUBTFUL, cost)
    assert tokens_per_verify(Confident(cost=cost), drafter, cost) > 1.07 * fixed


@pytest.mark.parametrize("cost", [0.05, 0.3])
@pytest.mark.parametrize("chance", [0.4, 0.8, 0.95])
@pytest.mark.parametrize(("rounds", "least"), [(100, 0.9), (ROUNDS, 0.97)])
def test_useless_confidence_does_little_harm_and_soon_less(chance, cost, rounds, least):
    reached = tokens_per_verify(Confident(cost=cost), useless(chance), cost, rounds)
    assert reached > least * best_fixed(chance, cost)


@pytest.mark.parametrize("cost", [0.3, 0.6])
def test_drafts_that_are_seldom_right_are_soon_left_out(cost):
    assert tokens_per_verify(Confident(cost=cost), useless(0.2), cost) > 0.97


@pytest.mark.parametrize(("timed", "drafts"), [(4, 4), (600, 0)])
def test_a_little_slower_than_plain_decoding_is_no_verdict_while_few_rounds_were_timed(timed, drafts):
    """Four drafts, each right four times of five: 3.36 tokens, for 3.45 decodings. Another text taught that."""
    experience = Experience(Times([1, 5]))
    for _ in range(40):
        experience.times.add(1, 1.0, 0, 0.0, 0.0)
    for _ in range(timed):
        experience.times.add(5, 3.45, 4, 0.0, 0.0)
    teacher, policy = (Confident().starting_from(experience) for _ in range(2))
    stats = Stats()
    for number in range(200):
        record(stats, [0.0] * 4, accepted=4 if number % 2 else 0)
    teacher.begin([1, 2, 3])
    teacher.next(stats)
    policy.begin([1, 2, 3])
    assert min(4, policy.next(Stats())) == drafts


def stats_of() -> Stats:
    """Ten rounds of four drafts, half of which were refused."""
    stats = Stats()
    for accepted in (4, 0) * 5:
        record(stats, [0.7] * 4, accepted)
    return stats


def drafts_of(policy: Confident, confidence: float = 0.7) -> int:
    """In a round after those of `stats_of`, learning until it knows."""
    stats = stats_of()
    for _ in range(3):
        stats.outcomes[0, 0] += 64 - stats.rounds % 64
        most = policy.next(stats)
    return next((count for count in range(most) if policy.enough([confidence] * count)), most)


def test_drafts_that_the_target_did_not_look_at_teach_nothing():
    assert stats_of().judged == {(7, True): 20, (7, False): 5}


@pytest.mark.parametrize(("draft_s", "drafts"), [(0.00002, 16), (0.03, 10), (0.6, 1), (1.0, 0)])
def test_the_cost_of_a_draft_is_the_measured_one(draft_s, drafts):
    """Drafts that are accepted four times of five, as before; a verify takes a tenth of a second."""
    experience = Experience(Times([1, 17]))
    for width in (*[1] * PLAIN_FIRST, 17):
        experience.times.add(width, 0.1, 1, draft_s * 0.1, 0.0)
    assert drafts_of(Confident().starting_from(experience)) == drafts


def test_a_wider_verify_is_paid_for_by_the_drafts_that_need_it():
    """Drafts are nearly free. The step to a verify of 9 takes as long as decoding twice: four good drafts pay for it,
    if they are sure, and four doubtful ones do not."""
    steps = RoundCost(((1, 1.0), (5, 1.1), (9, 3.0)), 0.001)
    assert drafts_of(Confident(cost=steps)) == 4
    assert drafts_of(Confident(cost=RoundCost(((1, 1.0), (5, 1.1), (9, 1.2)), 0.001))) == 8
    linear = RoundCost(tuple((width, float(width)) for width in range(1, 10)), 0.1)
    assert drafts_of(Confident(cost=linear)) == 0, "each draft takes 1.1 decodings, and gives four fifths of a token"


def test_where_drafting_does_not_pay_it_is_tried_again_now_and_then():
    policy, stats, asked = Confident(cost=2.0), Stats(), []
    for _ in range(8_000):
        most = policy.next(stats)
        count = next((n for n in range(1, most) if policy.enough([0.5] * n)), most)
        asked.append(count)
        record(stats, [0.5] * count, accepted=0)
    assert set(asked[1:]) == {0, 1, 2}
    assert any(asked[4_000:])
    assert sum(asked) < 70


def test_a_try_drafts_on_while_another_draft_costs_less_than_it_gives():
    """A verify of any drafts takes more than they give, and so none are made. In a try it is paid for, and a draft more
    takes three tenths of a decoding: worth it after one that is sure."""
    policy, stats, random = Confident(cost=RoundCost(((1, 1.0), (9, 6.0)), 0.3)), Stats(), np.random.default_rng(0)
    tried: dict[float, list[int]] = {SURE: [], DOUBTFUL: []}
    for _ in range(100_000):
        most, confidences = policy.next(stats), []
        while len(confidences) < most and not (confidences and policy.enough(confidences)):
            confidences.append(truthful(random)[0])
        if confidences and stats.rounds > 4_000:
            tried[confidences[0]].append(len(confidences))
        accepted = next((n for n, one in enumerate(confidences) if random.random() > one), len(confidences))
        record(stats, confidences, accepted)
    assert stats.drafted_rounds < 200
    assert np.mean(tried[SURE]) > 4 > 2 > np.mean(tried[DOUBTFUL])


def lengths_of(policy: Confident, rounds: int, verify_s: float) -> list[int]:
    """The drafts of a sequence's rounds, half of which are right; decoding takes 1."""
    stats, times, asked = Stats(), SequenceTimes(policy.experience.times), []
    for _ in range(rounds):
        count = min(4, policy.next(stats))
        asked.append(count)
        record(stats, [0.5] * count, count // 2)
        times.add(*((5, verify_s) if count else (1, 1.0)), count, 0.1 * count, 0.0)
    return asked


def test_what_not_drafting_takes_is_found_out_before_any_draft():
    """By a sequence that is alone: while it drafts, no round would tell that a verify takes ten decodings."""
    asked = lengths_of(Confident().starting_from(Experience(Times([1, 5]))), 200, verify_s=10.0)
    assert asked[:TRY_ROUNDS] == [0] * TRY_ROUNDS
    assert asked[TRY_ROUNDS] == 4
    assert asked[20:].count(0) > 170


def test_what_not_drafting_takes_is_not_told_by_one_moment_alone():
    """The first few rounds of the next sequences do not draft either, although it pays."""
    experience = Experience(Times([1, 5]))
    asked = [lengths_of(Confident().starting_from(experience), 20, verify_s=1.0) for _ in range(12)]
    assert [lengths.index(4) for lengths in asked[:5]] == [TRY_ROUNDS] * 5
    assert [lengths.index(4) for lengths in asked[6:]] == [0] * 6


def test_making_schedules_takes_a_small_part_of_the_time_once_something_is_known(monkeypatch):
    """It takes a hundredth of a second each. Rounds of a thousandth cannot afford that, but where little is known."""
    monkeypatch.setattr(draft_length, "now", itertools.count(0.0, 0.01).__next__)
    rounds_that_made = {round_s: rounds_making(monkeypatch, round_s) for round_s in (0.001, 1.0)}
    assert rounds_that_made[1.0] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 192]
    assert rounds_that_made[0.001] == [0, 1, 2, 4, 8]


def rounds_making(monkeypatch: pytest.MonkeyPatch, round_s: float) -> list[int]:
    """Those of 200, with four drafts each, before which a schedule was made."""
    experience, stats, made = Experience(Times([1, 5])), Stats(), []
    for width, drafts in ((1, 0),) * PLAIN_KNOWN + ((5, 4),) * REPEATED:
        experience.times.add(width, 1.0, drafts, 0.1 * drafts, 0.0)
    monkeypatch.setattr(draft_length, "schedule", lambda *given: made.append(stats.rounds) or schedule(*given))
    policy = Confident().starting_from(experience)
    for _ in range(200):
        policy.next(stats)
        record(stats, [0.9] * 4, accepted=4)
        stats.seconds["verify"] += round_s
    return sorted(set(made))


def test_what_one_sequence_teaches_is_not_another_s():
    policy = Confident(4, 0.9)
    for _ in range(2):
        session = open_session(ScriptedEngine(scripted_manifest(200)), "mtp", policy)
        list(session.generate([1, 2, 3], 100))
    assert policy == Confident(4, 0.9)
    assert session.draft_length is not policy


def test_before_the_first_round_nothing_is_known_and_nothing_stops():
    policy = Confident()
    policy.next(Stats())
    assert not policy.enough([0.01] * 9)


def test_mtp_stops_where_it_is_told_to_and_tells_its_confidences():
    asked = []

    class Second:
        def enough(self, confidences):
            asked.append(tuple(confidences))
            return len(confidences) == 2

    engine = ScriptedEngine(scripted_manifest())
    session = open_session(engine, "mtp", 4)
    session.drafter = MTPDrafter(session.target, session.cache, early_stop=Second())
    tokens = [token for emitted in session.generate([1, 2, 3], 12) for token in emitted.tokens]
    assert tokens == plain([1, 2, 3], 12)
    assert {len(confidences) for confidences in asked} == {1, 2}
    # The scripted drafter has one logit of 1 and eleven of 0.
    assert np.allclose([confidence for one in asked for confidence in one], (np.e - 1) / (np.e + 1))
    assert max(proposed for proposed, _ in session.stats.outcomes) == 2


def test_a_session_that_stops_early_drafts_less_and_writes_the_same():
    sessions = [
        open_session(ScriptedEngine(scripted_manifest(200)), "mtp", drafts) for drafts in (4, Confident(4, 0.9))
    ]
    texts = [[t for emitted in session.generate([1, 2, 3], 100) for t in emitted.tokens] for session in sessions]
    assert texts[0] == texts[1] == plain([1, 2, 3], 100)
    assert sessions[1].stats.proposed < sessions[0].stats.proposed
