"""Text to tokens and back, as a stream."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as HFTokenizer

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
        ids = self.encode_rendered(text)
        if not ids:
            raise PocketdraftError("The prompt is empty; give some text with --prompt.")
        return ids if self._bos is None else [self._bos, *ids]

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of what a chat template has rendered: it spells its own special tokens, the first included."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def spelling(self, token: int) -> str:
        """As it stands in the vocabulary; nothing for a token that it has not."""
        return self._tokenizer.id_to_token(token) or ""

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """Text of the tokens, with special tokens spelled out if wanted."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=not special))

    def stream(self) -> TextStream:
        return TextStream(self._tokenizer)

    def output(self, stop: Sequence[str] = ()) -> OutputText:
        """An output's text, which ends before the first of the `stop` strings. They may spell special tokens."""
        if "" in stop:
            raise PocketdraftError("A stop string is empty, so everything would end at once; give some text.")
        added = self._tokenizer.get_added_tokens_decoder()
        special = {entry.content: token for token, entry in added.items() if entry.special}
        tokens = [special[text] for text in stop if text in special]
        return OutputText(self.stream(), [text for text in stop if text not in special], tokens)


class TextStream:
    """Gives text as soon as it is final; all pieces and `finish()` together are the text decoded at once.

    A token may end inside a character. Gemma's byte tokens (`<0xE2>`) are decoded as a run, whose first
    characters become U+FFFD if a later byte spoils it: such a run is held back until it has ended.
    """

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token for token, entry in added.items() if entry.special)
        self._before: list[int] = []  # tokens of the last piece: decoders may look one token back
        self._held: list[int] = []

    def feed(self, tokens: Sequence[int]) -> str:
        return "".join(self._step(token) for token in tokens if token not in self._special)

    def finish(self) -> str:
        """What is held back, as it is: U+FFFD where a character was cut."""
        piece = self._decode([*self._before, *self._held])[len(self._decode(self._before)) :]
        self._before, self._held = self._held, []
        return piece

    def _step(self, token: int) -> str:
        self._held.append(token)
        if re.fullmatch("<0x[0-9A-F]{2}>", self._tokenizer.id_to_token(token) or ""):
            return ""
        return "" if self._decode(self._held).endswith("\ufffd") else self.finish()

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens)))


class OutputText:
    """An output as it grows: the loop feeds it and learns where it ends, whoever shows it takes what is final.

    It ends before the stop string that is complete first, of two at the same place the longer, however tokens cut
    them; or at one of `tokens`. What may yet become a stop string is held back, and so is what `TextStream` holds
    back: there a stop string is found when its characters are final. Pieces and `finish()` together are the text.
    """

    def __init__(self, stream: TextStream, stop: Sequence[str] = (), tokens: Sequence[int] = ()) -> None:
        self._stream, self._stop, self._tokens = stream, tuple(stop), frozenset(tokens)
        self._held = ""
        self.ended = False  # whether a stop string was found, which `finish` may yet do

    def feed(self, token: int) -> bool:
        """Whether the text ends with this token."""
        if not self.ended:
            self._add(self._stream.finish() if token in self._tokens else self._stream.feed([token]))
            self.ended |= token in self._tokens
        return self.ended

    def take(self) -> str:
        """What is final and was not taken before."""
        piece = self._held[: len(self._held) - self._doubtful()]
        self._held = self._held[len(piece) :]
        return piece

    def finish(self) -> str:
        """What is left, after the last token."""
        if not self.ended:
            self._add(self._stream.finish())
        piece, self._held = self._held, ""
        return piece

    def _add(self, piece: str) -> None:
        self._held += piece
        places = [(self._held.find(stop) + len(stop), -len(stop)) for stop in self._stop if stop in self._held]
        if places:
            end, length = min(places)
            self._held, self.ended = self._held[: end + length], True

    def _doubtful(self) -> int:
        """How many last characters begin a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        counts = range(min(longest, len(self._held)), 0, -1)
        endings = (count for count in counts if any(stop.startswith(self._held[-count:]) for stop in self._stop))
        return 0 if self.ended else next(endings, 0)
