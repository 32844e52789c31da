from __future__ import annotations

import pkgutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import VOCABULARY, ScriptedEngine, plain, scripted_manifest

from pocketdraft.runtime import drafters
from pocketdraft.runtime.accept import Verdict
from pocketdraft.runtime.cache import Cache
from pocketdraft.runtime.context import Context
from pocketdraft.runtime.drafters import Drafter, default_rule
from pocketdraft.runtime.drafters.prompt_lookup import LONGEST_MATCH
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.proposal import NOTHING
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target, Verified

PROMPT = [1, 2, 3]


def make(name: str) -> Drafter:
    target = Target(ScriptedEngine(scripted_manifest()))
    return drafters.load(name, target, Cache(target.engine.new_cache(), target.context_length))


def context_of(tokens: list[int]) -> Context:
    context = Context(stop=())
    context.begin(tokens, 9)
    return context


def test_a_misspelt_name_is_answered_with_the_near_one():
    with pytest.raises(PocketdraftError, match="no drafter 'promt_lookup'; did you mean 'prompt_lookup'"):
        make("promt_lookup")


def test_a_name_that_resembles_none_is_answered_with_all_of_them():
    with pytest.raises(PocketdraftError, match="there are hybrid, mtp, mtp_tree, none, prompt_lookup"):
        make("xyz")


@pytest.mark.parametrize("name", ["..session", "os", "__init__", ""])
def test_a_name_never_imports_what_is_not_a_drafter(name):
    with pytest.raises(PocketdraftError, match="There is no drafter"):
        make(name)


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(drafters.__path__)])
@given(tokens=st.lists(st.integers(0, 3), min_size=1, max_size=30), count=st.integers(-1, 6))
def test_no_drafter_proposes_more_than_asked(name, tokens, count):
    assert len(make(name).propose(context_of(tokens), count)) <= max(count, 0)


def test_mtp_is_silent_until_the_target_has_given_a_hidden_state():
    drafter = make("mtp")
    assert drafter.propose(context_of(PROMPT), 4) == NOTHING
    hidden = np.zeros((1, 1), np.float32)
    drafter.observe(Verdict((), 5, (0,)), Verified(np.zeros((1, VOCABULARY), np.float32), hidden, 1))
    drafter.restart(())
    assert drafter.propose(context_of(PROMPT), 4) == NOTHING


def test_mtp_that_is_right_half_of_the_time_is_refused_at_every_position():
    """Guards the other tests: the script checks seeds after refusals at each place of a draft."""
    session = open_session(ScriptedEngine(scripted_manifest(400)), "mtp", 4)
    list(session.generate(PROMPT, 300))
    assert all(0.2 < share < 0.8 for share in session.stats.conditional_acceptance_by_position()[:3])


def test_mtp_drafts_from_the_target_s_hidden_state_with_the_position_of_the_last_cached_token():
    calls = []

    class Watching(ScriptedEngine):
        def run(self, graph, inputs, cache=None):
            if graph == "mtp_drafter":
                calls.append((int(inputs["input_pos"][0]), np.flatnonzero(inputs["mask"]).tolist()))
            return super().run(graph, inputs, cache)

    session = open_session(Watching(scripted_manifest(), wrong_half=False), "mtp", 2)
    list(session.generate(PROMPT, 4))
    # Prompt and the first round make 4 tokens, of which 3 are cached; the round after has 3 more to emit.
    assert calls == [(2, [0, 1, 2])] * 2


@pytest.mark.parametrize(
    ("tokens", "count", "drafts"),
    [
        ([1, 2, 3, 4, 1, 2, 3], 4, (4, 1, 2, 3)),
        ([1, 2, 3, 4, 1, 2, 3], 2, (4, 1)),
        ([1, 9, 1, 8, 1], 1, (8,)),  # the last occurrence, not the first
        ([5, 2, 3, 7, 6, 3, 8, 5, 2, 3], 1, (7,)),  # the longer match, not the later one
        ([4, 4], 3, (4,)),
        ([1, 2, 3], 3, ()),
        ([1], 3, ()),
        ([1, 2, 1], 0, ()),
    ],
)
def test_prompt_lookup_copies_what_followed(tokens, count, drafts):
    assert make("prompt_lookup").propose(context_of(tokens), count).tokens == drafts


@settings(deadline=None)
@given(tokens=st.lists(st.integers(0, 3), min_size=1, max_size=30), count=st.integers(1, 6))
def test_prompt_lookup_finds_the_longest_suffix_there_is(tokens, count):
    drafts = make("prompt_lookup").propose(context_of(tokens), count).tokens
    matches = [
        (length, start)
        for length in range(1, LONGEST_MATCH + 1)
        for start in range(len(tokens) - length)
        if tokens[start : start + length] == tokens[-length:]
    ]
    length, start = max(matches, default=(0, len(tokens)))
    assert drafts == tuple(tokens[start + length :][:count])


def test_prompt_lookup_speeds_up_a_text_that_repeats():
    class Counting(ScriptedEngine):
        """Counts round the vocabulary: after one lap everything has occurred."""

        def _target(self, spec, inputs, cache):
            outputs = super()._target(spec, inputs, cache)
            following = (inputs["embeddings"][0, :, 0].astype(int) + 1) % VOCABULARY
            return outputs and outputs | {"logits": np.eye(VOCABULARY, dtype=np.float32)[following][None]}

    session = open_session(Counting(scripted_manifest(200)), "prompt_lookup", 4)
    emitted = [token for round_ in session.generate([0], 60) for token in round_.tokens]
    assert emitted == [(i + 1) % VOCABULARY for i in range(60)]
    assert session.stats.acceptance_by_position() == [1.0] * 4


def test_none_is_plain_decoding_one_token_a_round():
    engine = ScriptedEngine(scripted_manifest())
    rounds = list(open_session(engine, "none", 4).generate(PROMPT, 6))
    assert [round_.tokens for round_ in rounds] == [(token,) for token in plain(PROMPT, 6)]
    assert not any(call.startswith("verify") for call in engine.calls)


def test_the_default_rule_is_the_one_that_accepts_more():
    """Rejection of drawn drafts; where nothing is drawn both accept alike, and exact match keeps to the seed's text."""
    assert default_rule("mtp", timed=False) == "rejection"
    assert default_rule("mtp", timed=True) == "exact"
    assert default_rule("prompt_lookup", timed=False) == "exact"
    assert default_rule("none", timed=False) == "exact"
