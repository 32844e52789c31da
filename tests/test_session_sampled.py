"""The loop with a sampler: by exact match the text is the target's and the seed's, whatever was drafted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import DRAFTERS as TABLE_DRAFTERS
from sampled import SETTINGS, drawn
from scripted import VOCABULARY, ScriptedEngine, next_token, scripted_manifest

from pocketdraft.runtime.accept import Verdict
from pocketdraft.runtime.cache import Cache
from pocketdraft.runtime.context import Context
from pocketdraft.runtime.draft_length import Confident, Fixed
from pocketdraft.runtime.drafters.mtp import MTPDrafter
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.noise import Lane, Noise
from pocketdraft.runtime.proposal import Proposal
from pocketdraft.runtime.sampler import GREEDY, Sampler
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.session import Session, open_session
from pocketdraft.runtime.target import Target, Verified

PROMPT = [1, 2, 3]
RULES = ("exact", "rejection")
CHAINS = ["mtp", "prompt_lookup", "none"]
NAMES = [*CHAINS, "mtp_tree"]


def never_twice(logits: np.ndarray, history: Sequence[int]) -> np.ndarray:
    """A processor with a state: what it allows depends on the token before."""
    return np.where(np.arange(len(logits)) == history[-1], -np.inf, logits)


def plain(context: list[int], budget: int, sampler: Sampler, stop=frozenset(), capacity: int = 10**9) -> list[int]:
    """Plain decoding on paper: the argmax of log p and the Gumbel noise of the position."""
    tokens: list[int] = []
    every = np.arange(VOCABULARY)
    while len(tokens) < budget and len(context) + len(tokens) <= capacity:
        history = [*context, *tokens]
        logits = np.eye(VOCABULARY, dtype=np.float32)[next_token(tuple(history))]
        with np.errstate(divide="ignore"):
            scores = np.log(sampler.probabilities(logits, history))
        noise = Noise(sampler.sampling.seed).gumbel(Lane.TARGET, len(history), every)
        tokens.append(int((scores + noise).argmax()))
        if tokens[-1] in stop:
            break
    return tokens


def emitted(session: Session, prompt: list[int], budget: int) -> list[int]:
    return [token for round_ in session.generate(prompt, budget) for token in round_.tokens]


samplers = st.builds(
    lambda processors, **values: Sampler(Sampling(**values), processors=processors),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 4]),
    top_p=st.sampled_from([1.0, 0.7]),
    min_p=st.sampled_from([0.0, 0.4]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 2**64 - 1),
    processors=st.sampled_from([(), (never_twice,)]),
)
lengths = st.one_of(st.integers(0, 9), st.builds(Confident, st.integers(0, 9), st.sampled_from([None, 0.1, 0.5])))


class Oracle:
    """Proposes what the target will draw, but for the mistakes: any pattern of acceptance."""

    def __init__(self, mistakes: list[bool], sampler: Sampler) -> None:
        self.mistakes, self.sampler = mistakes, sampler

    def restart(self, prefilled) -> None: ...

    def propose(self, context: Context, count: int) -> Proposal:
        tokens = plain(context.tokens, count, self.sampler)
        wrong = [self.mistakes[(len(context.tokens) + i) % len(self.mistakes)] for i in range(len(tokens))]
        return Proposal.chain([(token + spoil) % VOCABULARY for token, spoil in zip(tokens, wrong, strict=True)])

    def observe(self, verdict: Verdict, verified: Verified) -> None: ...


@settings(deadline=None)
@given(
    turns=st.lists(
        st.tuples(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8), st.integers(1, 20)),
        min_size=1,
        max_size=3,
    ),
    drafter=st.one_of(st.sampled_from(NAMES), st.lists(st.booleans(), min_size=1, max_size=7)),
    drafts=lengths,
    sampler=samplers,
    stop=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=2),
    capacity=st.integers(20, 60),
    verify=st.sampled_from([(2,), (5,), (2, 3, 5), (3, 9)]),
)
def test_any_drafter_and_length_give_the_text_of_plain_decoding_with_the_same_seed(
    turns, drafter, drafts, sampler, stop, capacity, verify
):
    engine = ScriptedEngine(scripted_manifest(capacity, verify, stop=tuple(stop)))
    session = open_session(engine, drafter if isinstance(drafter, str) else "none", drafts, sampler=sampler)
    if not isinstance(drafter, str):
        session.drafter = Oracle(drafter, sampler)
    context: list[int] = []
    for prompt, budget in turns:
        context += prompt
        if len(context) > capacity:
            break
        expected = plain(context, budget, sampler, stop, capacity)
        written: list[int] = []
        for round_ in session.generate(prompt, budget):
            written += round_.tokens
            # Drafts that were kept are in the cache; the target's own token is not, unless a stop cut it off.
            pending = len(round_.tokens) - round_.drafted
            assert session.cache.length == len(context) + len(written) - pending
        assert written == expected
        context += expected
        assert session.context.tokens == context
    session.stats.check()


@settings(deadline=None)
@given(
    drafter=st.sampled_from(CHAINS),
    drafts=st.one_of(st.integers(0, 9), st.builds(Confident, st.integers(0, 9), st.just(0.2))),
    sampling=st.builds(Sampling, st.sampled_from([0.3, 3.0]), st.sampled_from([0, 4]), seed=st.integers(0, 99)),
    budget=st.integers(1, 30),
    stop=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=1),
    capacity=st.integers(8, 40),
)
def test_rejection_too_keeps_the_cache_in_step_and_the_budget(drafter, drafts, sampling, budget, stop, capacity):
    """The scripted engine raises, or draws from other logits, where K/V is not that of the text."""
    engine = ScriptedEngine(scripted_manifest(capacity, stop=tuple(stop)))
    session = open_session(engine, drafter, drafts, sampler=Sampler(sampling, "rejection"))
    for round_ in session.generate(PROMPT, budget):
        length = len(session.context.tokens) - (len(round_.tokens) - round_.drafted)
        assert session.cache.length == length
        assert session.cache.handle[:length] == session.context.tokens[:length]
    assert len(session.context.tokens) - len(PROMPT) == session.stats.emitted <= budget
    assert not stop & set(session.context.tokens[len(PROMPT) : -1])
    session.stats.check()


@pytest.mark.parametrize(
    ("drafter", "rule"), [*((name, "exact") for name in NAMES), *((name, "rejection") for name in CHAINS)]
)
def test_the_same_seed_gives_the_same_text_and_another_seed_another(drafter, rule):
    def text(seed: int) -> list[int]:
        sampler = Sampler(Sampling(3.0, seed=seed), rule)
        return emitted(open_session(ScriptedEngine(scripted_manifest()), drafter, 4, sampler=sampler), PROMPT, 30)

    assert text(5) == text(5) != text(6)


def test_rejection_without_a_temperature_is_greedy():
    sampler = Sampler(Sampling(), "rejection")
    session = open_session(ScriptedEngine(scripted_manifest()), "mtp", 4, sampler=sampler)
    assert emitted(session, PROMPT, 30) == plain(PROMPT, 30, GREEDY)


def test_drafts_drawn_with_the_target_s_noise_are_accepted_far_more_often():
    def with_another_seed(target, cache, sampler):
        return MTPDrafter(
            target, cache, Sampler(Sampling(**SETTINGS["temperature"], seed=sampler.sampling.seed + 10**9))
        )

    _, coupled = drawn(SETTINGS["temperature"], TABLE_DRAFTERS["MTP sampled"], 2_000, "exact")
    _, rejection = drawn(SETTINGS["temperature"], TABLE_DRAFTERS["MTP sampled"], 2_000, "rejection")
    _, apart = drawn(SETTINGS["temperature"], with_another_seed, 2_000, "exact")
    assert coupled.accepted_per_round > 1.5 * apart.accepted_per_round
    assert coupled.accepted_per_round > 0.85 * rejection.accepted_per_round


def test_drafts_that_are_not_drawn_are_accepted_alike_by_either_rule():
    for drafter in ("MTP greedy", "prompt lookup"):
        exact, rejection = (drawn(SETTINGS["top-k"], TABLE_DRAFTERS[drafter], 4_000, rule)[1] for rule in RULES)
        assert exact.accepted_per_round == pytest.approx(rejection.accepted_per_round, rel=0.1)


def test_rows_that_the_walk_does_not_reach_are_not_computed():
    asked = []

    def watching(logits: np.ndarray, history: Sequence[int]) -> np.ndarray:
        asked.append(tuple(history))
        return logits

    for rule in RULES:
        sampler = Sampler(Sampling(0.01), rule, (watching,))
        target = Target(ScriptedEngine(scripted_manifest()))
        mistakes = [False, True, False, False, False]  # the second draft of the first round
        session = Session(target, Cache(target.engine.new_cache(), 64), Oracle(mistakes, GREEDY), Fixed(4), sampler)
        asked.clear()
        assert len(next(session.generate([*PROMPT, 4, 5], 20)).tokens) == 2
        assert len(asked) == 2


def test_lengths_by_the_clock_are_refused_where_the_text_would_depend_on_them():
    engine = ScriptedEngine(scripted_manifest())
    with pytest.raises(PocketdraftError, match="measured times, on which rejection's text would depend"):
        open_session(engine, "mtp", Confident(), sampler=Sampler(Sampling(1.0), "rejection"))
    open_session(engine, "mtp", Confident(cost=0.1), sampler=Sampler(Sampling(1.0), "rejection"))


def test_a_drafter_of_trees_is_refused_by_rejection_before_it_drafts():
    sampler = Sampler(Sampling(1.0), "rejection")
    with pytest.raises(PocketdraftError, match="mtp_tree proposes trees, rejection takes a chain"):
        open_session(ScriptedEngine(scripted_manifest()), "mtp_tree", 4, sampler=sampler)


def test_a_rule_that_is_none_is_named():
    with pytest.raises(PocketdraftError, match="The rule is 'exct'; give one of exact, rejection"):
        Sampler(Sampling(), "exct")  # type: ignore[arg-type]
