"""The tokens of one sequence, and the only place where stop tokens, stop strings and budgets cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from .accept import Verdict

Finish = Literal["stop", "budget", "context"]
Ends = Callable[[int], bool]  # fed the output token by token, whether it ends with this one


class Emitted(NamedTuple):
    """What one round gave: the first `drafted` of `tokens` were the drafter's. `finish` is set on the last."""

    tokens: tuple[int, ...]
    drafted: int
    finish: Finish | None


class Context:
    """Prompt and output so far. The last token is pending: its K/V may not be in the cache yet."""

    def __init__(self, stop: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self.remaining = 0
        self.finish: Finish | None = None
        self._stop = frozenset(stop)
        self.ends: Ends = _never  # fed the output token by token

    @property
    def last(self) -> int:
        return self.tokens[-1]

    def begin(self, prompt: Sequence[int], budget: int, ends: Ends | None = None) -> None:
        self.tokens.extend(prompt)
        self.remaining, self.finish, self.ends = budget, None, ends or _never

    def commit(self, verdict: Verdict, room: int) -> Emitted:
        """Takes the verdict's tokens up to the first stop token or complete stop string, or to the budget.

        `room` is what the cache has left after the accepted drafts; without a slot for the pending token
        the sequence ends.
        """
        tokens: list[int] = []
        for token in (*verdict.accepted, verdict.next_token)[: self.remaining]:
            tokens.append(token)
            if self.ends(token) or token in self._stop:
                self.finish = "stop"
                break
        self.tokens.extend(tokens)
        self.remaining -= len(tokens)
        if self.finish is None and self.remaining == 0:
            self.finish = "budget"
        if self.finish is None and room == 0:
            self.finish = "context"
        return Emitted(tuple(tokens), min(len(tokens), len(verdict.accepted)), self.finish)


def _never(token: int) -> bool:
    return False
