"""Stop strings in the loop: nothing is emitted after one, whatever was drafted across it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import VOCABULARY, ScriptedEngine, scripted_manifest
from scripted import plain as plain_tokens
from spelled import PIECES, STOP, save_pieces

from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.text import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer(save_pieces(tmp_path_factory.mktemp("pieces")), bos=None)


def until(tokens: list[int], stop: list[str]) -> list[int]:
    """Up to the token that completes a stop string."""
    for count in range(1, len(tokens) + 1):
        text = "".join(PIECES[token] for token in tokens[:count] if token != STOP)
        if any(one in text for one in stop):
            return tokens[:count]
    return tokens


@settings(deadline=None)
@given(
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6),
    stop=st.lists(st.text('ab{}":1,', min_size=1, max_size=3), max_size=2),
    drafter=st.sampled_from(["mtp", "prompt_lookup", "none"]),
    drafts=st.integers(0, 6),
    budget=st.integers(1, 30),
)
def test_tokens_are_plain_decoding_s_up_to_the_one_that_completes_a_stop_string(
    tokenizer, prompt, stop, drafter, drafts, budget
):
    wanted = until(plain_tokens(prompt, budget), stop)
    session, output = open_session(ScriptedEngine(scripted_manifest()), drafter, drafts), tokenizer.output(stop)
    found, shown = [], ""
    for round_ in session.generate(prompt, budget, output.feed):
        found += round_.tokens
        shown += output.take()
    shown += output.finish()
    assert found == wanted
    assert not any(one in shown for one in stop)
    assert tokenizer.decode(wanted).startswith(shown)
    cut = shown != tokenizer.decode(wanted)
    assert session.context.finish == ("stop" if cut else "budget")
    session.stats.check()


def test_a_later_turn_has_stop_strings_of_its_own(tokenizer):
    session = open_session(ScriptedEngine(scripted_manifest()), "mtp", 4)
    text = tokenizer.decode(plain_tokens([1, 2], 8))
    first = tokenizer.output([text[2:5]])
    tokens = [token for round_ in session.generate([1, 2], 8, first.feed) for token in round_.tokens]
    assert len(tokens) < 8
    context = [1, 2, *tokens, 3]
    again = [token for round_ in session.generate([3], 8) for token in round_.tokens]
    assert again == plain_tokens(context, 8)
