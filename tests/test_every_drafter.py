"""What every file of `runtime/drafters` owes, over an engine that raises where it is fed what belongs elsewhere."""

from __future__ import annotations

import pkgutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import VOCABULARY, plain, scripted_manifest
from scripted_drafters import EveryDrafter, every_drafter

from pocketdraft.runtime import drafters
from pocketdraft.runtime.draft_length import Confident
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.sampler import Sampler
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.session import open_session

NAMES = [module.name for module in pkgutil.iter_modules(drafters.__path__)]
WITH_WEIGHTS = ["dflash", "draft_model", "early_exit", "mtp_heads"]
PROMPT = [1, 2, 3]
tokens = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(
    turns=st.lists(st.tuples(tokens, st.integers(1, 20)), min_size=1, max_size=3),
    drafts=st.one_of(st.integers(0, 9), st.builds(Confident, st.integers(0, 9), st.sampled_from([None, 0.1, 0.5]))),
    stop=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=2),
    capacity=st.integers(40, 120),
    verify=st.sampled_from([(2,), (5,), (2, 3, 5), (3, 9)]),
    per_layer=st.booleans(),
)
def test_every_drafter_gives_the_text_of_plain_decoding(name, turns, drafts, stop, capacity, verify, per_layer):
    session = open_session(EveryDrafter(every_drafter(capacity, verify, tuple(stop), per_layer)), name, drafts)
    context: list[int] = []
    for prompt, budget in turns:
        if len(context) + len(prompt) > capacity:
            break
        context += prompt
        expected = plain(context, budget, stop, capacity)
        made = [token for emitted in session.generate(prompt, budget) for token in emitted.tokens]
        assert made == expected
        context += made
    session.stats.check()


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_a_drafter_that_is_always_right_is_accepted_whole(name):
    """So the script sees that it is fed what a graph should be fed, round after round."""
    session = open_session(EveryDrafter(every_drafter(400), wrong_half=False), name, 4)
    list(session.generate(PROMPT, 200))
    assert session.stats.accepted_per_round > 3.8


@pytest.mark.parametrize("name", [name for name in NAMES if drafters.stoppable(name)])
def test_a_drafter_that_may_be_stopped_early_says_how_sure_it_is(name):
    session = open_session(EveryDrafter(every_drafter(400)), name, Confident(cost=0.1))
    list(session.generate(PROMPT, 40))
    assert session.stats.judged.total() > 0


@pytest.mark.parametrize("name", [*WITH_WEIGHTS, "dflash_tree"])
def test_a_sequence_may_go_back_and_on(name):
    engine = EveryDrafter(every_drafter(400))
    session = open_session(engine, name, 4)
    list(session.generate(PROMPT, 40))
    other = [*session.context.tokens[:20], 5, 6]
    rest = session.rewind(other)
    engine.join = session.cache.length - 1
    assert [t for e in session.generate(rest, 30) for t in e.tokens] == plain(other, 30)


@pytest.mark.parametrize("name", ["dflash", "dflash_tree", "mtp_heads"])
def test_a_drafter_without_its_k_v_of_the_prompt_drafts_from_what_it_has_seen_itself(name):
    """A fork of a cache that was filled with no drafter there."""
    engine = EveryDrafter(every_drafter(400), wrong_half=False)
    first = open_session(engine, "none")
    list(first.generate(PROMPT, 20))
    engine.known_from = first.cache.length
    session = open_session(engine, name, 4, first.target, cache=first.target.fork(first.cache))
    prompt = [*first.context.tokens, 4]
    assert [t for e in session.generate(prompt, 30) for t in e.tokens] == plain(prompt, 30)
    assert session.stats.accepted > 20


@pytest.mark.parametrize("name", WITH_WEIGHTS)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 99), temperature=st.sampled_from([0.3, 3.0]))
def test_under_exact_match_the_text_depends_on_the_seed_alone(name, seed, temperature):
    sampler = Sampler(Sampling(temperature, seed=seed))
    texts = []
    for drafter in ("none", name):
        session = open_session(EveryDrafter(every_drafter(200)), drafter, 4, sampler=sampler)
        texts.append([t for e in session.generate(PROMPT, 40) for t in e.tokens])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", [*WITH_WEIGHTS, "dflash_tree"])
def test_a_drafter_that_the_bundle_does_not_hold_is_refused_with_those_it_holds(name):
    engine = EveryDrafter(scripted_manifest())
    kind = name.removesuffix("_tree")
    with pytest.raises(PocketdraftError, match=f"holds no {kind} drafter, it holds mtp; export it"):
        open_session(engine, name)


def test_early_exit_runs_no_layer_twice():
    """A round of n drafts runs the first layers once for each token, and the others once for all."""
    engine = EveryDrafter(every_drafter(200), wrong_half=False)
    session = open_session(engine, "early_exit", 4)
    session.begin(PROMPT, 5)
    engine.calls.clear()
    assert len(session.round().tokens) == 5
    assert engine.calls.count("exit_draft") == 5
    assert engine.calls.count("exit_verify_5") == 1
    assert not {"decode", "verify_5", "verify_2", "verify_3"} & set(engine.calls)
