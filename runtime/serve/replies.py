"""Pieces of output to OpenAI's JSON, whole or as chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from ..text import Tokenizer
from .generation import Piece, Wanted
from .logprobs import TokenLogprob

Json = dict[str, Any]


class Reply:
    """One response: adds up pieces, and gives them as chunks. Subclasses have the two endpoints' shapes."""

    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, model: str, wanted: Wanted, tokenizer: Tokenizer) -> None:
        self._wanted, self._tokenizer = wanted, tokenizer
        self._head: Json = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._pieces: list[list[Piece]] = [[] for _ in range(wanted.choices)]

    def add(self, piece: Piece) -> None:
        self._pieces[piece.choice].append(piece)

    def whole(self) -> Json:
        choices = []
        for index, pieces in enumerate(self._pieces):
            text = "".join(piece.text for piece in pieces)
            logprobs = [one for piece in pieces for one in piece.logprobs]
            finish = pieces[-1].finish if pieces else None
            choices.append(self._choice(index, self._told(text), logprobs, finish, 0))
        return self._head | {"object": self.whole_object, "choices": choices, "usage": self.usage()}

    def opening(self) -> list[Json]:
        """Chunks before any piece."""
        return []

    def chunk(self, piece: Piece) -> Json | None:
        """Of the piece that was added last. None where it says nothing."""
        if not (piece.text or piece.logprobs or piece.finish):
            return None
        told = sum(len(before.logprobs) for before in self._pieces[piece.choice][:-1])
        return self._chunk([self._choice(piece.choice, self._delta(piece.text), piece.logprobs, piece.finish, told)])

    def usage_chunk(self) -> Json:
        return self._chunk([]) | {"usage": self.usage()}

    def usage(self) -> Json:
        prompt, written = len(self._wanted.prompt), sum(piece.tokens for one in self._pieces for piece in one)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def _chunk(self, choices: list[Json]) -> Json:
        return self._head | {"object": self.chunk_object, "choices": choices}

    def _choice(
        self, index: int, content: Json, logprobs: Sequence[TokenLogprob], finish: str | None, told: int
    ) -> Json:
        """`told` counts the tokens of the choice whose log-probabilities were given before."""
        found = None if self._wanted.top is None else self._logprobs(index, logprobs, told)
        return {"index": index, **content, "logprobs": found, "finish_reason": finish}

    def _spelled(self, token: int) -> str:
        return self._tokenizer.decode([token], special=True)

    def _told(self, text: str) -> Json:
        raise NotImplementedError

    def _delta(self, text: str) -> Json:
        raise NotImplementedError

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob], told: int) -> Json:
        raise NotImplementedError


class Completion(Reply):
    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def _told(self, text: str) -> Json:
        return {"text": text}

    _delta = _told

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob], told: int) -> Json:
        before = [one for piece in self._pieces[index] for one in piece.logprobs]
        lengths = [len(self._spelled(one.token)) for one in before]
        return {
            "tokens": [self._spelled(one.token) for one in logprobs],
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [{self._spelled(token): value for token, value in one.top} for one in logprobs],
            "text_offset": [sum(lengths[: told + i]) for i in range(len(logprobs))],
        }


class Chat(Reply):
    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> list[Json]:
        """The role of each choice."""
        delta = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [self._chunk([{"index": index, **delta}]) for index in range(self._wanted.choices)]

    def _told(self, text: str) -> Json:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _delta(self, text: str) -> Json:
        return {"delta": {"content": text} if text else {}}

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob], told: int) -> Json:
        content = [
            self._entry(one.token, one.logprob) | {"top_logprobs": [self._entry(*likely) for likely in one.top]}
            for one in logprobs
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> Json:
        """`bytes` are not known of a token that ends inside a character."""
        spelled = self._spelled(token)
        return {
            "token": spelled,
            "logprob": logprob,
            "bytes": None if "\ufffd" in spelled else list(spelled.encode()),
        }


def error(message: str, kind: str = "invalid_request_error", code: str | None = None) -> Json:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
