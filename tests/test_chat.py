"""Conversations over a scripted target: whatever is said, each answer is that of one long prefill."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedEngine, plain, scripted_manifest
from speaking import END, SPECIAL, TEMPLATE, VOCABULARY, make_template, make_tokenizer

from pocketdraft.runtime.chat import Chat
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.text import Tokenizer

STRIPPING = TEMPLATE.replace("{{ m.content }}", "{{ m.content | replace('c', '') }}")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def chat_of(tokenizer: Tokenizer, capacity: int = 400, source: str = TEMPLATE, system: str | None = None) -> Chat:
    engine = ScriptedEngine(scripted_manifest(capacity, stop=(END,)))
    return Chat(open_session(engine, "mtp", 4), make_template(source), tokenizer, system)


def ask(chat: Chat, question: str, budget: int, patience: int | None = None) -> tuple[list[int], list[int]]:
    """The tokens before the answer, and the answer's, of which only the first pieces were waited for."""
    emitted = chat.session.stats.emitted
    with contextlib.closing(chat.ask(question, budget)) as pieces:
        list(itertools.islice(pieces, patience))
    sequence, length = list(chat.session.context.tokens), chat.session.stats.emitted - emitted
    return sequence[: len(sequence) - length], sequence[len(sequence) - length :]


turns_of = st.lists(
    st.tuples(st.text("abcde", min_size=1, max_size=6), st.integers(1, 25), st.none() | st.integers(1, 4)),
    min_size=1,
    max_size=5,
)


@settings(deadline=None)
@given(turns=turns_of, source=st.sampled_from([TEMPLATE, STRIPPING]), system=st.sampled_from([None, "dada"]))
def test_any_conversation_is_answered_as_by_one_long_prefill(tokenizer, turns, source, system):
    """Answers of any length, left after a few pieces, or told again by a template that changes them."""
    chat, before = chat_of(tokenizer, source=source, system=system), list[int]()
    for question, budget, patience in turns:
        prompt, answer = ask(chat, question, budget, patience)
        expected = plain(prompt, budget, frozenset({END}))
        assert answer == (expected if patience is None else expected[: len(answer)])
        cache, sequence = chat.session.cache, prompt + answer
        assert cache.length >= len(sequence) - 1
        assert cache.handle[: cache.length] == sequence[: cache.length]
        if source == TEMPLATE:
            assert sequence[: len(before)] == before, "what was said is not what is read again"
        rendered = make_template(source).render(chat.messages[:-1])
        assert tokenizer.decode(prompt, special=True) == rendered
        before = sequence


@pytest.fixture
def ended(tokenizer) -> tuple[Chat, list[int]]:
    """A chat whose first answer, of several tokens, ended with the stop token; and its sequence."""
    for question in map("".join, itertools.product("abcde", repeat=3)):
        chat = chat_of(tokenizer)
        prompt, answer = ask(chat, question, 60)
        if len(answer) > 3 and chat.session.context.finish == "stop":
            return chat, prompt + answer
    raise AssertionError("the script ends no answer")


def test_the_token_that_ended_an_answer_is_in_the_next_turn_s_k_v_once(ended):
    """LiteRT-LM#3439 leaves it out."""
    chat, sequence = ended
    prompt, _ = ask(chat, "abcd", 1)
    assert prompt[: len(sequence) + 1] == [*sequence, VOCABULARY.index("<ask>")]
    assert chat.session.cache.handle[: len(sequence)] == sequence
    assert "<end>" not in chat.messages[1]["content"]


def test_a_turn_prefills_what_is_new_and_nothing_else(ended):
    chat, _ = ended
    engine = chat.session.target.engine
    engine.calls.clear()
    ask(chat, "abcd", 1)
    # The stop token, <ask>, abcd, <end>: <say> is the first round's.
    assert [call for call in engine.calls if "embedder" not in call] == ["prefill_4", "decode"]


def test_the_answer_is_shown_without_the_token_that_ended_it_and_without_special_ones(tokenizer):
    chat = chat_of(tokenizer)
    for question in ("a", "bcd", "ee"):
        shown = "".join(chat.ask(question, 60))
        answer = str(chat.messages[-1]["content"])
        for piece in SPECIAL:
            answer = answer.replace(piece, "")
        assert shown == answer


def test_a_question_that_does_not_fit_leaves_the_conversation_as_it_was(tokenizer):
    chat = chat_of(tokenizer, capacity=60)
    ask(chat, "ab", 5)
    messages = chat.messages
    with pytest.raises(PocketdraftError, match="holds 60; shorten it"):
        ask(chat, "e" * 70, 5)
    assert chat.messages == messages
    prompt, answer = ask(chat, "cd", 5)
    assert tokenizer.decode(prompt, special=True) == make_template().render(chat.messages[:-1])
    assert answer == plain(prompt, 5, frozenset({END}))
