"""Sampled output against exact enumeration; and what the test must catch: each bug put in, and found.

Distances are standard normal numbers: 4 or more has a chance of 3 in 100,000, and seeds are fixed.
"""

from __future__ import annotations

import numpy as np
import pytest
import sampled
from sampled import DRAFTERS, SETTINGS, HeadsEngine, Maker, Remembering, distance, drawn, expected, logits

from pocketdraft.runtime import accept as accept_module
from pocketdraft.runtime.draft_length import Confident
from pocketdraft.runtime.drafters.mtp import MTPDrafter
from pocketdraft.runtime.drafters.mtp_heads import MTPHeadsDrafter
from pocketdraft.runtime.noise import Lane, Noise
from pocketdraft.runtime.proposal import NOTHING, Proposal
from pocketdraft.runtime.sampler import Draft, Sampler

FEW, MANY = 1_500, 200_000
DRAFTED = slice(1, 3)  # the second and third token: the first of a text is the target's own
LIMIT = 4.0


@pytest.mark.parametrize("rule", ["exact", "rejection"])
@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_output_has_the_target_s_distribution(settings, drafter, rule):
    found, _ = drawn(SETTINGS[settings], DRAFTERS[drafter], FEW, rule)
    assert distance(found, expected(SETTINGS[settings]), DRAFTED) < LIMIT


# By exact match the text is the same with every drafter (`test_session_sampled.py`), so one is enough.
@pytest.mark.distribution
@pytest.mark.parametrize(
    ("rule", "drafter"), [("exact", next(iter(DRAFTERS))), *(("rejection", drafter) for drafter in DRAFTERS)]
)
@pytest.mark.parametrize("settings", SETTINGS)
def test_whole_texts_have_the_target_s_distribution(settings, drafter, rule):
    found, stats = drawn(SETTINGS[settings], DRAFTERS[drafter], MANY, rule)
    assert stats.accepted > MANY / 500
    assert distance(found, expected(SETTINGS[settings])) < LIMIT


@pytest.mark.parametrize("rule", ["exact", "rejection"])
@pytest.mark.parametrize("rounds", [FEW, pytest.param(MANY, marks=pytest.mark.distribution)])
def test_stopping_early_leaves_the_distribution(rule, rounds):
    """The stop learns from each text for the next one, so lengths differ from round to round."""
    early_stop = Confident(longest=3, cost=0.25)

    def make(target, cache, sampler):
        return MTPDrafter(target, cache, sampler, early_stop)

    found, stats = drawn(SETTINGS["temperature"], make, rounds, rule, early_stop)
    by_length = [sum(n for (proposed, _), n in stats.outcomes.items() if proposed == length) for length in (1, 2)]
    assert min(by_length) > rounds / 10
    part = DRAFTED if rounds == FEW else slice(None)
    assert distance(found, expected(SETTINGS["temperature"]), part) < LIMIT


@pytest.mark.parametrize("rule", ["exact", "rejection"])
@pytest.mark.parametrize("rounds", [FEW, pytest.param(MANY, marks=pytest.mark.distribution)])
def test_drafts_of_several_heads_leave_the_distribution(rule, rounds):
    found, stats = drawn(SETTINGS["temperature"], MTPHeadsDrafter, rounds, rule, engine=HeadsEngine)
    assert {proposed for proposed, _ in stats.outcomes} == {0, 1, 2}
    assert min(stats.outcomes[2, accepted] for accepted in range(3)) > rounds / 50
    assert distance(found, expected(SETTINGS["temperature"]), DRAFTED if rounds == FEW else slice(None)) < LIMIT


# --- what must be found


def drafted_by(bug: type[Sampler]) -> Maker:
    """MTP with a sampler that has a bug; target and acceptance keep the right one."""
    return lambda target, cache, sampler: MTPDrafter(target, cache, bug(sampler.sampling, sampler.rule))


class ClaimsToHaveDrawn(Sampler):
    """Drafts by argmax and gives the test all of q: transformers' assisted generation for Gemma 4, its issue 47932."""

    def draft(self, logits, tokens, path):
        probs = self.probabilities(logits, [*tokens, *path])
        return Draft(int(probs.argmax()), probs, logits)


class BeforeProcessors(Sampler):
    """Draws after temperature and truncation, and tells of q before them."""

    def draft(self, logits, tokens, path):
        drawn = super().draft(logits, tokens, path)
        return Draft(drawn.token, Remembering(1.0).probabilities(logits, ()), logits)


class WithoutThePath(Sampler):
    """Tells of q without the penalty on the drafts before."""

    def draft(self, logits, tokens, path):
        return Draft(super().draft(logits, tokens, path).token, self.probabilities(logits, tokens), logits)


class DropsDoubtfulDrafts(MTPDrafter):
    """Takes back drafts that it has drawn, for what they are."""

    def propose(self, context, count):
        proposal = super().propose(context, count)
        keep = next((i for i, q in enumerate(proposal.probs) if q[proposal.tokens[i]] < 0.3), len(proposal))
        return Proposal.chain(proposal.tokens[:keep], proposal.probs[:keep])


class Recalling(MTPDrafter):
    """Does not draft where a round before would have had an odd token: allowed, as each round has its own noise."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._drafted = {}

    def propose(self, context, count):
        start = len(context.tokens)
        if self._drafted.get(start, 0) % 2:
            return NOTHING
        proposal = super().propose(context, count)
        self._drafted |= {start + i: token for i, token in enumerate(proposal.tokens)}
        return proposal


@pytest.fixture
def always_the_same_logits(monkeypatch):
    """Whatever the tokens before: so that draws for one position are alike in all rounds."""
    monkeypatch.setattr(sampled, "logits", lambda sequence, drafter=False: logits((1,), drafter))


def rejection_is_off_by(settings: str, make: Maker = MTPDrafter, rounds: int = 10_000) -> float:
    found, _ = drawn(SETTINGS[settings], make, rounds, "rejection")
    return distance(found, expected(SETTINGS[settings]), DRAFTED)


@pytest.mark.parametrize("settings", SETTINGS)
def test_full_probabilities_of_a_greedy_draft_are_found(settings):
    assert rejection_is_off_by(settings, drafted_by(ClaimsToHaveDrawn), FEW) > 10


@pytest.mark.parametrize("settings", SETTINGS)
def test_probabilities_before_the_processors_are_found(settings):
    assert rejection_is_off_by(settings, drafted_by(BeforeProcessors)) > 5


def test_a_penalty_that_does_not_follow_the_path_is_found(monkeypatch):
    """With a token that both like, so that it would be drafted twice."""
    liked = np.array([[-1, 0, 0.5, 3, 1, -1], [0, 0, 0, 2.5, 1.5, -1]], np.float32)
    monkeypatch.setattr(sampled, "logits", lambda sequence, drafter=False: liked[int(drafter)])
    assert rejection_is_off_by("penalty") < LIMIT
    assert rejection_is_off_by("penalty", drafted_by(WithoutThePath)) > 5


def test_a_residual_that_leaves_the_draft_in_is_found(monkeypatch):
    monkeypatch.setattr(accept_module, "_residual", lambda p, q, token: p)
    assert rejection_is_off_by("top-k") > 10


def test_a_residual_that_takes_all_of_the_draft_out_is_found(monkeypatch):
    residual = accept_module._residual
    monkeypatch.setattr(accept_module, "_residual", lambda p, q, token: residual(p, None, token))
    assert rejection_is_off_by("top-k") > 10


def test_drafts_taken_back_after_they_were_drawn_are_found():
    assert rejection_is_off_by("top-k", DropsDoubtfulDrafts) > 10


def share(monkeypatch: pytest.MonkeyPatch, one: Lane, other: Lane) -> None:
    key = Noise._key
    monkeypatch.setattr(Noise, "_key", lambda self, lane, position: key(self, other if lane == one else lane, position))


def test_a_residual_drawn_with_the_draft_s_noise_is_found(monkeypatch):
    share(monkeypatch, Lane.DRAFT, Lane.TARGET)
    assert rejection_is_off_by("top-p", rounds=30_000) > 5


def test_a_test_with_the_draft_s_noise_is_found(monkeypatch):
    share(monkeypatch, Lane.ACCEPT, Lane.DRAFT)
    assert rejection_is_off_by("temperature") > 5


@pytest.mark.usefixtures("always_the_same_logits")
def test_a_test_with_the_residual_s_noise_is_found(monkeypatch):
    assert rejection_is_off_by("top-p") < LIMIT
    share(monkeypatch, Lane.ACCEPT, Lane.TARGET)
    assert rejection_is_off_by("top-p") > 5


@pytest.mark.usefixtures("always_the_same_logits")
def test_noise_that_rounds_have_in_common_is_found(monkeypatch):
    assert rejection_is_off_by("temperature", Recalling) < LIMIT
    monkeypatch.setattr(Noise, "child", lambda self, number: self)
    assert rejection_is_off_by("temperature", Recalling) > 5
