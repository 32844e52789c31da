"""Text to tokens and back, as a stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as HFTokenizer
from tokenizers.decoders import DecodeStream

from .errors import PocketdraftError


class Tokenizer:
    """The bundle's `tokenizer.json`. `bos` is put before every prompt."""

    def __init__(self, path: Path, bos: int | None) -> None:
        try:
            self._tokenizer = HFTokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise PocketdraftError(f"{path} is not a tokenizer ({error}); export the bundle again.") from error
        self._bos = bos

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt. Raises PocketdraftError if it is empty."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not ids:
            raise PocketdraftError("The prompt is empty; give some text with --prompt.")
        return ids if self._bos is None else [self._bos, *ids]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def stream(self) -> TextStream:
        return TextStream(self._tokenizer)


class TextStream:
    """Gives text as soon as it is whole: a token may end inside a character."""

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def feed(self, tokens: Sequence[int]) -> str:
        return "".join(self._stream.step(self._tokenizer, token) or "" for token in tokens)
