"""Several native MTP heads over an engine that raises where a head is fed what belongs elsewhere."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import VOCABULARY, plain
from scripted_drafters import EveryDrafter, every_drafter

from pocketdraft.runtime.draft_length import Confident, Fixed
from pocketdraft.runtime.sampler import Sampler
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.session import Session, open_session
from pocketdraft.runtime.survey import survey
from pocketdraft.runtime.target import Target

PROMPT = [1, 2, 3]
tokens = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12)


def engine_of(heads: int, capacity: int = 400, wrong_half: bool = True, **given) -> EveryDrafter:
    return EveryDrafter(every_drafter(capacity, heads=heads, **given), wrong_half=wrong_half)


def written(session: Session, prompt: list[int], budget: int) -> list[int]:
    return [token for emitted in session.generate(prompt, budget) for token in emitted.tokens]


@settings(deadline=None, max_examples=60)
@given(
    heads=st.integers(2, 5),
    turns=st.lists(st.tuples(tokens, st.integers(1, 20)), min_size=1, max_size=3),
    drafts=st.one_of(st.integers(0, 9), st.builds(Confident, st.integers(0, 9), st.sampled_from([None, 0.1, 0.5]))),
    stop=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=2),
    capacity=st.integers(40, 120),
    verify=st.sampled_from([(2,), (5,), (2, 3, 5), (3, 9)]),
)
def test_the_text_is_plain_decoding_s(heads, turns, drafts, stop, capacity, verify):
    engine = engine_of(heads, capacity, verify=verify, stop=tuple(stop))
    session = open_session(engine, "mtp_heads", drafts)
    context: list[int] = []
    for prompt, budget in turns:
        if len(context) + len(prompt) > capacity:
            break
        context += prompt
        made = written(session, prompt, budget)
        assert made == plain(context, budget, stop, capacity)
        context += made
    session.stats.check()


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 99), temperature=st.sampled_from([0.3, 3.0]))
def test_under_exact_match_the_text_depends_on_the_seed_alone(seed, temperature):
    sampler = Sampler(Sampling(temperature, seed=seed))
    sessions = [open_session(engine_of(3), drafter, 4, sampler=sampler) for drafter in ("none", "mtp_heads")]
    assert len({tuple(written(session, PROMPT, 40)) for session in sessions}) == 1


@pytest.mark.parametrize(("asked", "made"), [(1, 1), (2, 2), (3, 3), (4, 3), (9, 3)])
def test_a_round_has_no_more_drafts_than_there_are_heads(asked, made):
    """As transformers' generator: it asks each head once."""
    engine = engine_of(3, wrong_half=False, verify=(2, 3, 5, 10))
    session = open_session(engine, "mtp_heads", asked)
    session.begin(PROMPT, 100)
    for _ in range(3):
        engine.calls.clear()
        assert len(session.round().tokens) == made + 1
        assert sum(call.startswith("mtp_heads") for call in engine.calls) == made


def test_heads_whose_drafts_stand_read_no_row_twice():
    """All of a round's 4 + 1 rows at once, and no padding."""
    engine = engine_of(4, wrong_half=False, verify=(5,))
    session = open_session(engine, "mtp_heads", 4)
    written(session, PROMPT, 40)
    engine.calls.clear()
    session.begin(PROMPT, 100)
    session.round()
    engine.calls.clear()
    for _ in range(4):
        session.round()
    heads = ["mtp_heads_5", *(f"mtp_heads_{head}_5" for head in (1, 2, 3))]
    assert [call for call in engine.calls if call.startswith("mtp_heads")] == heads * 4


def test_refused_drafts_are_read_again_and_nothing_before_them():
    """Head k has k rows of refused drafts and the new one: 4 at most, where the graph of 8 would be the next."""
    engine = engine_of(4, verify=(2, 3, 5))
    written(open_session(engine, "mtp_heads", 4), PROMPT, 200)
    assert "mtp_heads_3_4" in engine.calls
    assert not {"mtp_heads_8", "mtp_heads_1_8", "mtp_heads_2_8", "mtp_heads_3_8"} & set(engine.calls)


@pytest.mark.parametrize("drafts", [0, 1, 2])
def test_heads_that_were_not_asked_for_long_catch_up(drafts):
    session = open_session(engine_of(4, wrong_half=False), "mtp_heads", drafts)
    made = written(session, PROMPT, 60)
    session.draft_length, session.stats = Fixed(4), type(session.stats)()
    assert written(session, [5], 60) == plain([*PROMPT, *made, 5], 60)
    assert session.stats.accepted_per_round > 3.8


def test_a_sequence_may_go_back_and_on_and_back_again():
    engine = engine_of(3)
    session = open_session(engine, "mtp_heads", 4)
    written(session, PROMPT, 60)
    for kept in (40, 12, 9, 8, 7, 5):  # each time some of the rows that were read with drafts stay
        other = [*session.context.tokens[:kept], 5, 6]
        rest = session.rewind(other)
        engine.join = session.cache.length - 1
        assert written(session, rest, 30) == plain(other, 30)


def test_going_back_costs_no_draft_of_what_comes_after():
    engine = engine_of(3, wrong_half=False)
    session = open_session(engine, "mtp_heads", 3)
    written(session, PROMPT, 60)
    rest = session.rewind([*session.context.tokens[:20], 5, 6])
    engine.join, session.stats = session.cache.length - 1, type(session.stats)()
    written(session, rest, 60)
    assert session.stats.accepted_per_round > 2.8


def test_heads_without_their_k_v_of_the_prompt_draft_from_what_they_have_seen_themselves():
    engine = engine_of(3, wrong_half=False)
    first = open_session(engine, "none")
    written(first, PROMPT, 20)
    engine.known_from = first.cache.length
    session = open_session(engine, "mtp_heads", 4, first.target, cache=first.target.fork(first.cache))
    prompt = [*first.context.tokens, 4]
    assert written(session, prompt, 30) == plain(prompt, 30)
    assert session.stats.accepted > 18


@pytest.mark.parametrize("heads", [1, 3])
def test_a_round_that_was_interrupted_before_the_drafter_heard_of_it(heads):
    """The target's state of a position is missing: what was read before it would be beside the wrong tokens."""
    engine = engine_of(heads, wrong_half=False)
    session = open_session(engine, "mtp_heads", 0)  # so that its positions wait
    session.begin(PROMPT, 60)
    session.round()
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.drafter, "observe", interrupt)
        session.round()
    whole = [*session.context.tokens, 5, 6]
    rest = session.rewind(whole)
    engine.known_from, session.draft_length, session.stats = session.cache.length, Fixed(3), type(session.stats)()
    assert written(session, rest, 60) == plain(whole, 60)
    assert session.stats.accepted_per_round > 2.5


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_drafts_that_nobody_verified_are_held_against_what_came():
    """A survey asks at every token, and the target goes on by one: accepted drafts are no verdict's there."""
    surveyed = survey(Target(engine_of(3)), "mtp_heads", 4, PROMPT, 60)
    assert {place.proposed for place in surveyed.places[1:-3]} == {3}
    right = survey(Target(engine_of(3, wrong_half=False)), "mtp_heads", 4, PROMPT, 60)
    assert all(place.accepted(3) == 3 for place in right.places[1:-3])
