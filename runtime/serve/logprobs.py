"""Log-probabilities of the tokens that are written, and of those that were likely in their place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..accept import Verdict
from ..context import Context
from ..drafters import Drafter
from ..proposal import Proposal
from ..sampler import Sampler
from ..sampling import Logits
from ..target import Prefilled, Verified

NEVER = -9999.0  # of a token that the settings exclude, as OpenAI has it: JSON has no infinity


@dataclass(frozen=True)
class TokenLogprob:
    """`top` are the likeliest tokens with theirs, the likeliest first; they need not hold the token."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Watched:
    """A drafter that keeps, of each round, the target's distribution at every token that came of it.

    That is what the tokens were drawn from: after penalty, bias, constraint, temperature and truncation. At
    temperature 0, where that would be all on one token, it is the one at temperature 1.
    """

    def __init__(self, drafter: Drafter, sampler: Sampler, top: int) -> None:
        self._drafter, self._sampler, self._top = drafter, sampler, top
        self._before: list[int] = []
        self._round: list[TokenLogprob] = []

    def restart(self, prefilled: Sequence[Prefilled]) -> None:
        self._drafter.restart(prefilled)

    def propose(self, context: Context, count: int) -> Proposal:
        self._before = list(context.tokens)
        return self._drafter.propose(context, count)

    def observe(self, verdict: Verdict, verified: Verified) -> None:
        self._drafter.observe(verdict, verified)
        self._round = list(self._tokens(verdict, verified.logits))

    def last(self, count: int) -> tuple[TokenLogprob, ...]:
        """Of the first tokens of the last round: those that were not cut."""
        return tuple(self._round[:count])

    def _tokens(self, verdict: Verdict, logits: Logits) -> Iterator[TokenLogprob]:
        history = list(self._before)
        for row, token in zip(verdict.rows, (*verdict.accepted, verdict.next_token), strict=True):
            found = self._logprobs(logits[row], history)
            best = found.argsort(kind="stable")[::-1][: self._top]
            top = tuple((int(one), float(found[one])) for one in best if found[one] > NEVER)
            yield TokenLogprob(token, float(found[token]), top)
            history.append(token)

    def _logprobs(self, logits: Logits, history: list[int]) -> Logits:
        """float64 [V]."""
        if self._sampler.sampling.temperature > 0:
            with np.errstate(divide="ignore"):
                found = np.log(self._sampler.probabilities(logits, history))
        else:
            scores = self._sampler.sampling.scores(logits, history, self._sampler.processors).astype(np.float64)
            scores -= scores.max()
            found = scores - np.log(np.exp(scores).sum())
        return np.maximum(found, NEVER)
