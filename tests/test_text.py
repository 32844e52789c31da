"""Streaming text. Byte-level BPE is the embedded pair's tokenizer, byte fallback is Gemma's."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.text import OutputText, TextStream, Tokenizer


def byte_level() -> HFTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = HFTokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    return tokenizer


def byte_fallback() -> HFTokenizer:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "\u2581", "\u2581a", "é", "\ufffd"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = HFTokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    return tokenizer


TOKENIZERS = {"byte level": byte_level(), "byte fallback": byte_fallback()}
GEMMA = TOKENIZERS["byte fallback"]


def byte_tokens(data: bytes) -> list[int]:
    return [GEMMA.token_to_id(f"<0x{byte:02X}>") for byte in data]


# Mostly pieces of real characters, so that whole, cut and spoiled ones all occur.
characters = st.sampled_from([bytes([byte]) for byte in "é😀".encode()] + ["😀".encode(), "é".encode(), b"A", b"\xff"])
words = st.sampled_from(["a", "\u2581a", "é", "\ufffd", "<eos>"])


@settings(deadline=None)
@given(
    pieces=st.lists(characters | words, max_size=10),
    name=st.sampled_from(sorted(TOKENIZERS)),
    cuts=st.lists(st.integers(1, 5), max_size=20),
)
def test_pieces_and_the_rest_are_the_text_decoded_at_once(pieces, name, cuts):
    tokenizer = TOKENIZERS[name]
    tokens = []
    for piece in pieces:
        if isinstance(piece, bytes) and name == "byte fallback":
            tokens += byte_tokens(piece)
        elif isinstance(piece, bytes):
            tokens += [token for byte in piece for token in [byte_level_id(byte)]]
        elif (token := tokenizer.token_to_id(piece)) is not None:
            tokens.append(token)
    stream, given, at = TextStream(tokenizer), "", 0
    whole = tokenizer.decode(tokens)
    for cut in [*cuts, len(tokens)]:
        given += stream.feed(tokens[at : at + cut])
        assert whole.startswith(given), "text was given that a later token changed"
        at += cut
    assert given + stream.finish() == whole


def byte_level_id(byte: int) -> int:
    return int(TOKENIZERS["byte level"].token_to_id(BYTE_LETTERS[byte]))


def _byte_letters() -> dict[int, str]:
    """The letter by which byte-level BPE writes each byte (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


BYTE_LETTERS = _byte_letters()


def test_a_character_split_over_tokens_comes_out_whole_with_its_last_one():
    stream = TextStream(TOKENIZERS["byte level"])
    assert [stream.feed([byte_level_id(byte)]) for byte in "é!".encode()] == ["", "é", "!"]


def test_a_character_cut_at_the_end_is_given_by_finish():
    stream = TextStream(TOKENIZERS["byte level"])
    assert stream.feed([byte_level_id(0xF0), byte_level_id(0x9F)]) == ""
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


def test_a_byte_run_that_a_later_byte_spoils_is_not_given_early():
    stream = TextStream(GEMMA)
    spoiled = [*byte_tokens(b"A\xe2"), GEMMA.token_to_id("a")]
    assert stream.feed(spoiled) == GEMMA.decode(spoiled) == "\ufffd\ufffda"


def test_special_tokens_are_hidden_even_inside_a_character():
    stream = TextStream(GEMMA)
    first, second = byte_tokens("é".encode())
    assert stream.feed([first, GEMMA.token_to_id("<eos>"), second, GEMMA.token_to_id("a")]) == "éa"


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    TOKENIZERS["byte level"].save(str(path))
    return path


def test_bos_is_put_before_the_prompt_once_and_only_if_there_is_one(tokenizer_file):
    plain = Tokenizer(tokenizer_file, bos=None).encode("hé")
    assert Tokenizer(tokenizer_file, bos=7).encode("hé") == [7, *plain]
    assert Tokenizer(tokenizer_file, bos=7).decode(plain) == "hé"


def test_an_empty_prompt_is_refused(tokenizer_file):
    with pytest.raises(PocketdraftError, match="prompt is empty"):
        Tokenizer(tokenizer_file, bos=7).encode("")


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(PocketdraftError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer(tmp_path / "tokenizer.json", bos=None)


# --- stop strings


def opened(name: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        TOKENIZERS[name].save(str(path))
        return Tokenizer(path, bos=None)


def pieces_until(text: OutputText, tokens: list[int], cuts: list[int]) -> tuple[str, int]:
    """What is shown when taken after rounds of such lengths, and how many tokens the loop would emit."""
    shown, emitted, round_ends = "", 0, set(np.cumsum(cuts))
    for token in tokens:
        ends = text.feed(token)
        emitted += 1
        if ends or emitted in round_ends:
            shown += text.take()
        if ends:
            break
    return shown + text.finish(), emitted


@settings(deadline=None)
@given(
    pieces=st.lists(st.sampled_from(["a", "b", "ab", "é", "<eos>"]), max_size=12),
    stop=st.lists(st.text("abé", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 4), min_size=12, max_size=12),
)
def test_a_stop_string_cuts_where_the_first_one_is_complete_however_tokens_lie(pieces, stop, cuts):
    tokens = [token for piece in pieces for token in letters(piece)]
    whole = TOKENIZERS["byte level"].decode(tokens)
    wanted = whole
    for end in range(len(whole) + 1):
        if found := [one for one in stop if whole[:end].endswith(one)]:
            wanted = whole[: end - max(map(len, found))]
            break
    text = opened("byte level").output(stop)
    shown, emitted = pieces_until(text, tokens, cuts)
    assert shown == wanted
    if wanted != whole:
        assert TOKENIZERS["byte level"].decode(tokens[:emitted]) == whole[:end], "a token after the stop string"


def letters(piece: str) -> list[int]:
    if piece == "<eos>":
        return [TOKENIZERS["byte level"].token_to_id(piece)]
    return [byte_level_id(byte) for byte in piece.encode()]


def test_what_may_become_a_stop_string_is_held_back_and_given_when_it_does_not():
    text = opened("byte level").output(["abc"])
    taken = []
    for letter in "xabab":
        text.feed(byte_level_id(ord(letter)))
        taken.append(text.take())
    assert taken == ["x", "", "", "ab", ""]
    assert text.finish() == "ab"


def test_a_stop_string_inside_a_token_cuts_the_token():
    text = opened("byte fallback").output(["a"])
    assert text.feed(GEMMA.token_to_id("\u2581a")) is True
    assert text.finish() == " "


def test_a_stop_string_that_spells_a_special_token_stops_at_the_token():
    text = opened("byte level").output(["<eos>"])
    assert not any(text.feed(byte_level_id(byte)) for byte in b"<eos>")
    assert text.feed(TOKENIZERS["byte level"].token_to_id("<eos>"))
    assert text.finish() == "<eos>"


def test_an_empty_stop_string_is_refused():
    with pytest.raises(PocketdraftError, match="A stop string is empty"):
        opened("byte level").output(["a", ""])
