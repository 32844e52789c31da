"""Logits to probabilities: repetition penalty, temperature, top-k, top-p and min-p, in transformers' order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .errors import PocketdraftError
from .noise import Probabilities

Logits = npt.NDArray[np.floating[Any]]


class LogitsProcessor(Protocol):
    """Changes the logits of target and drafter alike, after the penalty and before the temperature.

    A pure function of its arguments. `history` holds all tokens before the one to be drawn, those of the path being
    walked included: a state that follows the text is kept by history, and a refused draft leaves nothing behind.
    """

    def __call__(self, logits: Logits, history: Sequence[int]) -> Logits:
        """[V] to [V]; not in place. A token at -inf is never drawn."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The defaults are greedy, and each of the others is off.

    The names and their meaning are transformers': `top_k` keeps all that equal the k-th; `top_p` is the least set of
    likely tokens that has this much, of equal ones the higher ids (transformers leaves that to an unstable sort);
    `min_p` is relative to the likeliest; `repetition_penalty` divides positive logits, and multiplies negative ones,
    of what prompt and output hold.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        penalty = self.repetition_penalty
        checks = (
            ("temperature", 0 <= self.temperature < math.inf, "0, which is greedy, or more"),
            ("top-k", self.top_k >= 0, "0, which keeps all, or more"),
            ("top-p", 0 < self.top_p <= 1, "more than 0, and 1 at most"),
            ("min-p", 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition-penalty", 0 < penalty < math.inf, "more than 0; 1 is none"),
            ("seed", 0 <= self.seed < 1 << 64, "0 or more, below 2^64"),
        )
        for name, holds, mend in checks:
            if not holds:
                raise PocketdraftError(f"--{name} is {getattr(self, name.replace('-', '_'))}; give {mend}.")

    def scores(self, logits: Logits, history: Sequence[int], processors: Sequence[LogitsProcessor] = ()) -> Logits:
        """[V]: what the penalty and the processors make of the logits. Its argmax is the greedy token."""
        if self.repetition_penalty != 1.0 and len(history):
            logits = _penalized(logits, history, self.repetition_penalty)
        for processor in processors:
            logits = processor(logits, history)
        return logits

    def probabilities(
        self, logits: Logits, history: Sequence[int], processors: Sequence[LogitsProcessor] = ()
    ) -> Probabilities:
        """float64 [V] that sum to 1, from logits [V] after the tokens `history`. Temperature 0: all on one token."""
        scores = self.scores(logits, history, processors)
        found = np.zeros(scores.shape, np.float64)
        best = best_of(scores)
        if self.temperature == 0:
            found[best] = 1.0
            return found
        kept = _largest(scores, self.top_k) if 0 < self.top_k < len(scores) else slice(None)
        with np.errstate(over="ignore"):  # to -inf, which is right, at temperatures next to 0
            weights = np.exp((scores[kept].astype(np.float64) - scores[best]) / self.temperature)
        weights /= weights.sum()
        if self.top_p < 1:
            _drop_tail(weights, 1 - self.top_p)
        weights[weights < self.min_p * weights.max()] = 0.0
        found[kept] = weights / weights.sum()
        return found


def best_of(scores: Logits) -> int:
    """The token of the highest score, the lowest of equal ones. Raises PocketdraftError where none can be drawn."""
    best = int(scores.argmax())
    if not math.isfinite(scores[best]):
        raise PocketdraftError(f"The best logit of {len(scores)} is {scores[best]}; no token can be drawn.")
    return best


def lead(scores: Logits, best: int) -> float:
    """How far the highest score, at `best`, lies above the second highest. Takes it out of `scores` meanwhile: so the
    second is found in a fraction of the time of a partition."""
    highest = scores.item(best)
    scores[best] = -math.inf
    second = scores.item(scores.argmax())
    scores[best] = highest
    return highest - second


def _penalized(logits: Logits, history: Sequence[int], penalty: float) -> Logits:
    scores = logits.astype(np.float64)
    seen = np.unique(np.asarray(history))
    scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    return scores


def _largest(scores: Logits, count: int) -> npt.NDArray[np.intp]:
    """Ids of the largest, and of all that equal the least of them."""
    return np.flatnonzero(scores >= np.partition(scores, -count)[-count])


def _drop_tail(weights: Probabilities, tail: float) -> None:
    """Zeroes, in place, the least likely that together have at most `tail`; never the likeliest.

    Sorting is what would take long: only what lies above a bound is sorted, as all below it has no more than `tail`.
    """
    bound = weights.max()
    while weights[weights < bound].sum() > tail:
        bound /= 16
    low, rest = weights < bound, np.flatnonzero(weights >= bound)
    ascending = rest[weights[rest].argsort(kind="stable")]
    gone = weights[low].sum() + weights[ascending].cumsum() <= tail
    weights[low] = 0.0
    weights[ascending[:-1][gone[:-1]]] = 0.0
