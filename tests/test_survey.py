"""What is played on paper is what a session does, round for round."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import VOCABULARY
from scripted_drafters import EveryDrafter, every_drafter

from pocketdraft.runtime.cost import RoundCost
from pocketdraft.runtime.draft_length import Confident, Fixed
from pocketdraft.runtime.drafters import surveyable
from pocketdraft.runtime.sampler import GREEDY, Sampler
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.stats import Stats
from pocketdraft.runtime.survey import play, survey
from pocketdraft.runtime.target import Target

PROMPT = [1, 2, 3]
COST = RoundCost(((1, 1.0), (2, 1.25), (3, 1.5), (5, 2.0)), 0.25)


def proposed(stats: Stats) -> Counter[int]:
    counts: Counter[int] = Counter()
    for (made, _), rounds in stats.outcomes.items():
        counts[made] += rounds
    return counts


@settings(deadline=None, max_examples=200)
@given(
    drafter=st.sampled_from([*surveyable(every_drafter().drafters), "none"]),
    drafts=st.integers(0, 4) | st.builds(Confident, st.integers(0, 6), st.sampled_from([0.1, 0.3, COST])),
    sampler=st.just(GREEDY) | st.builds(lambda seed: Sampler(Sampling(3.0, seed=seed)), st.integers(0, 50)),
    budget=st.integers(1, 40),
    stop=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=1),
    capacity=st.integers(4, 64),
)
def test_the_rounds_on_paper_are_those_of_a_session(drafter, drafts, sampler, budget, stop, capacity):
    """At the first round, at stop tokens, budgets and the end of the context."""
    manifest = every_drafter(capacity, stop=tuple(stop))
    session = open_session(EveryDrafter(manifest), drafter, drafts, sampler=sampler)
    rounds = list(session.generate(PROMPT, budget))

    text = survey(Target(EveryDrafter(manifest)), drafter, 4, PROMPT, budget, sampler)
    assert text.prompt == tuple(PROMPT)
    policy = Fixed(drafts) if isinstance(drafts, int) else Confident(drafts.longest, drafts.cost)
    played = play([text], policy, COST, None if isinstance(drafts, int) else policy)
    assert proposed(played.stats) == proposed(session.stats)
    assert played.stats.rounds == len(rounds)
    assert played.stats.emitted == session.stats.emitted
    if not session.stats.cut:
        assert played.stats.outcomes == session.stats.outcomes
        assert played.stats.judged == session.stats.judged
    assert played.seconds == pytest.approx(
        sum(COST.seconds(made) * n for (made, _), n in played.stats.outcomes.items())
    )
