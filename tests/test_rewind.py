"""Going back to what two conversations share: the K/V there stay, but never beyond what a ring still holds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import VOCABULARY, RecurrentEngine, RingEngine, ScriptedEngine, next_token, plain, scripted_manifest

from pocketdraft.runtime.session import Session, open_session
from pocketdraft.runtime.target import Target

PREFILL, VERIFY = (4, 8), (2, 3, 5)
WIDEST = 8
DRAFTERS = ["prompt_lookup", "none"]
tokens_of = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30)
# What a conversation keeps of the one before, as a share, and what it says then.
conversations = st.lists(st.tuples(st.floats(0, 1), tokens_of, st.integers(1, 12)), min_size=1, max_size=6)


def windowed(context: list[int], budget: int, window: int, capacity: int) -> list[int]:
    """Plain decoding on paper of a target that sees `window` tokens."""
    tokens: list[int] = []
    while len(tokens) < budget and len(context) + len(tokens) <= capacity:
        tokens.append(next_token(tuple([*context, *tokens][-window:])))
    return tokens


def answer(session: Session, tokens: list[int], budget: int) -> list[int]:
    rest = session.rewind(tokens)
    return [token for round_ in session.generate(rest, budget) for token in round_.tokens]


@settings(deadline=None, max_examples=300)
@given(
    turns=conversations,
    window=st.integers(1, 12),
    spare=st.integers(0, 5),
    drafter=st.sampled_from(DRAFTERS),
)
def test_any_way_back_gives_the_text_of_a_prefill_from_the_start_whatever_the_ring_lost(turns, window, spare, drafter):
    """The ring is as small as the export makes it, and the engine raises where a slot was overwritten."""
    capacity = 120
    engine = RingEngine(scripted_manifest(capacity, VERIFY, PREFILL), window=window, slots=window + WIDEST - 1 + spare)
    session = open_session(engine, drafter, 4)
    for share, said, budget in turns:
        tokens = [*session.context.tokens[: int(share * len(session.context.tokens))], *said][:capacity]
        assert answer(session, tokens, budget) == windowed(tokens, budget, window, capacity)


@pytest.mark.parametrize(("back", "kept"), [(0, True), (WIDEST, True), (WIDEST + 1, False)])
def test_a_ring_that_wrapped_is_kept_as_far_back_as_the_widest_call_and_no_further(back, kept):
    """With the smallest ring the bound is exact: one slot further back, a token would look at what was lost."""
    engine = RingEngine(scripted_manifest(120, VERIFY, PREFILL), window=4, slots=4 + WIDEST - 1)
    target = Target(engine)
    cache = target.new_cache()
    target.prefill(cache, [1] * 40)
    length = cache.written - back
    target.rewind(cache, length)
    assert cache.length == (length if kept else 0)
    lost = [p for p in range(length - 3, length) if cache.handle[p % engine.slots][0] != p]
    assert bool(lost) is not kept


@settings(deadline=None, max_examples=150)
@given(turns=conversations, spare=st.integers(0, 4), drafter=st.sampled_from([*DRAFTERS, "mtp", "mtp_tree"]))
def test_a_recurrent_layer_is_never_asked_for_more_than_it_can_take_back(turns, spare, drafter):
    """As many tokens as the widest verify are all that an export asks of it; a prefill is wider, and padded."""
    capacity = 120
    engine = RecurrentEngine(scripted_manifest(capacity, VERIFY, (4, 16)), back=max(VERIFY) + spare)
    session = open_session(engine, drafter, 4)
    for share, said, budget in turns:
        tokens = [*session.context.tokens[: int(share * len(session.context.tokens))], *said][:capacity]
        assert answer(session, tokens, budget) == plain(tokens, budget, capacity=capacity)


@pytest.mark.parametrize(("back", "kept"), [(5, True), (6, False)])
def test_a_recurrent_layer_goes_back_as_far_as_it_can_and_else_begins_anew(back, kept):
    target = Target(RecurrentEngine(scripted_manifest(120, VERIFY, PREFILL), back=5))
    cache = target.new_cache()
    target.prefill(cache, [1] * 40)
    target.rewind(cache, cache.written - back)
    assert cache.length == (40 - back if kept else 0)


@pytest.mark.parametrize(
    ("tokens", "graphs"),
    [
        (8, ["prefill_8"]),
        (19, ["prefill_16", "verify_3"]),
        (9, ["prefill_8", "decode"]),  # prefill_16 would have 7 tokens of padding
        (11, ["prefill_16"]),
        (6, ["prefill_8"]),
        (33, ["prefill_16", "prefill_16", "decode"]),
    ],
)
def test_a_prefill_of_a_recurrent_layer_has_no_more_padding_than_can_be_taken_back(tokens, graphs):
    engine = RecurrentEngine(scripted_manifest(120, VERIFY, (8, 16)), back=5)
    target = Target(engine)
    target.prefill(target.new_cache(), [1] * tokens)
    assert [call for call in engine.calls if "embedder" not in call] == graphs


def test_a_target_with_recurrent_layers_takes_no_trees():
    """A state has no branches, whatever an engine can do with K/V."""
    assert not Target(RecurrentEngine(scripted_manifest())).takes_trees


def test_a_ring_that_never_wrapped_is_kept_however_far_back():
    engine = RingEngine(scripted_manifest(120, VERIFY, PREFILL), window=4, slots=40)
    session = open_session(engine, "none")
    list(session.generate([1] * 20, 8))
    engine.calls.clear()
    session.rewind([1, 1, 5])
    assert session.cache.length == 2


def test_after_a_start_anew_the_ring_counts_as_one_that_never_wrapped():
    target = Target(RingEngine(scripted_manifest(120, VERIFY, PREFILL), window=4, slots=4 + WIDEST - 1))
    cache = target.new_cache()
    target.prefill(cache, [1] * 40)
    target.rewind(cache, 20)
    target.prefill(cache, [1] * 8)
    target.rewind(cache, 2)
    assert cache.length == 2


def test_only_what_is_new_is_prefilled():
    engine = ScriptedEngine(scripted_manifest(200))
    session = open_session(engine, "none")
    first = answer(session, [1, 2, 3], 10)
    engine.calls.clear()
    longer = [1, 2, 3, *first, 7, 8]
    assert answer(session, longer, 1) == plain(longer, 1)
    assert [call for call in engine.calls if "embedder" not in call] == ["prefill_4", "decode"]


def test_the_same_conversation_again_is_answered_again():
    """Its last token must be run once more: its logits are not kept."""
    session = open_session(ScriptedEngine(scripted_manifest()), "mtp")
    assert answer(session, [1, 2, 3], 9) == answer(session, [1, 2, 3], 9) == plain([1, 2, 3], 9)


class Interrupted(Exception):
    """As Ctrl-C: it comes at any call."""


class Interrupting(ScriptedEngine):
    left = -1

    def run(self, graph, inputs, cache=None):
        outputs = super().run(graph, inputs, cache)
        self.left -= 1
        if self.left == 0:
            raise Interrupted
        return outputs


@settings(deadline=None)
@given(prompt=tokens_of, at=st.integers(1, 40), keep=st.floats(0, 1), said=tokens_of)
def test_an_interruption_anywhere_leaves_a_sequence_to_go_on_with(prompt, at, keep, said):
    session = open_session(Interrupting(scripted_manifest(200)), "mtp", 4)
    session.target.engine.left = at
    try:
        answer(session, prompt, 20)
    except Interrupted:
        session.target.engine.left = -1
    told = session.context.tokens
    assert told == [*prompt, *plain(prompt, len(told) - len(prompt))]
    tokens = [*told[: int(keep * len(told))], *said]
    assert answer(session, tokens, 9) == plain(tokens, 9)
