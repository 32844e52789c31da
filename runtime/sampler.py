"""What target, drafter and acceptance share: how tokens are drawn, with which noise, and which rule accepts them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np

from .errors import PocketdraftError
from .noise import Lane, Noise, Probabilities, largest
from .sampling import Logits, LogitsProcessor, Sampling, best_of, lead

Rule = Literal["exact", "rejection"]


class Draft(NamedTuple):
    """A drafted token with the probabilities it was drawn from; None where it is the argmax, so all on one token."""

    token: int
    probs: Probabilities | None
    scores: Logits

    @property
    def confidence(self) -> float:
        """How sure the drafter is of it, 0 to 1: the probability of a drawn draft; of an argmax (p - q) / (p + q), q
        being that of the second best. That tells as well whether the target agrees, and takes no exponentials of a
        whole vocabulary, which on a phone take as long as a draft."""
        if self.probs is not None:
            return float(self.probs[self.token])
        return math.tanh(lead(self.scores, self.token) / 2)


@dataclass(frozen=True)
class Sampler:
    """`rule` says how drafts are accepted where sampling is not greedy; `accept.py` has both.

    Exact match gives a text that does not depend on drafter, draft length or their timing, as rejection's does. For
    drafts that are not drawn the two accept alike, p(x). For drawn ones rejection accepts 1 - TV, exact match between
    (1 - TV) / (1 + TV) and that: on the embedded pair, four drafts a round, it gives 5 to 10% fewer tokens a round
    (`benchmarks/rules.py`). `drafters.default_rule` picks by that.
    """

    sampling: Sampling
    rule: Rule = "exact"
    processors: tuple[LogitsProcessor, ...] = ()

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise PocketdraftError(f"The rule is {self.rule!r}; give one of {', '.join(get_args(Rule))}.")

    @property
    def noise(self) -> Noise:
        return Noise(self.sampling.seed)

    @cached_property
    def rejects(self) -> bool:
        return self.rule == "rejection" and self.sampling.temperature > 0

    @cached_property
    def takes_argmax(self) -> bool:
        """Whether the target's token is its logits' argmax as they are."""
        return self.sampling.temperature == 0 and self.sampling.repetition_penalty == 1 and not self.processors

    def sample(self, number: int) -> Sampler:
        """That of one of several samples of the same prompt: the first, 0, is this one; their noise is independent."""
        seed = self.noise.child(number).seed if number else self.sampling.seed
        return replace(self, sampling=replace(self.sampling, seed=seed))

    def probabilities(self, logits: Logits, history: Sequence[int]) -> Probabilities:
        """float64 [V] from logits [V] after the tokens `history`."""
        return self.sampling.probabilities(logits, history, self.processors)

    def choose(self, logits: Logits, history: Sequence[int]) -> int:
        """The token after `history`: the argmax, the lowest of equal ones, or drawn with the noise of its position."""
        if self.sampling.temperature == 0:
            return best_of(self.sampling.scores(logits, history, self.processors))
        return self.noise.draw(self.probabilities(logits, history), Lane.TARGET, len(history))

    def likely(self, logits: Logits, history: Sequence[int]) -> Probabilities:
        """What a drafter's logits [V] say of each token, float64 [V]; at temperature 0, where the target's token is
        sure but the drafter is not, as at temperature 1."""
        if self.sampling.temperature > 0:
            return self.probabilities(logits, history)
        scores = self.sampling.scores(logits, history, self.processors).astype(np.float64)
        odds = np.exp(scores - scores.max())
        probabilities: Probabilities = odds / odds.sum()
        return probabilities

    def draft(self, logits: Logits, tokens: Sequence[int], path: Sequence[int]) -> Draft:
        """The drafter's token after the context's `tokens` and the drafts `path` before it.

        Under exact match it is drawn with the very noise that the target's token will be drawn with, so that the
        two are the same as often as their distributions allow (Daliri et al., arXiv 2408.07978).
        """
        if self.takes_argmax:  # without a copy of the history: the draft loop's hot path
            return Draft(best_of(logits), None, logits)
        history = [*tokens, *path]
        if self.sampling.temperature == 0:
            scores = self.sampling.scores(logits, history, self.processors)
            return Draft(best_of(scores), None, scores)
        probs = self.probabilities(logits, history)
        if self.rejects:
            token = self.noise.child(len(tokens)).draw(probs, Lane.DRAFT, len(history))
        else:
            token = self.noise.draw(probs, Lane.TARGET, len(history))
        return Draft(token, probs, logits)

    def ranking(self, draft: Draft, position: int, count: int) -> list[int]:
        """The draft, and what would have been drafted in its place at `position`, the next best first: `count` at most.

        That is by score where the draft is the argmax. Where it was drawn with the target's noise, it is by when they
        arrive in that race: likely the target's winner, if it is not the draft.
        """
        if draft.probs is None:
            return largest(draft.scores, count)
        return self.noise.ranking(draft.probs, Lane.TARGET, position, count)


GREEDY = Sampler(Sampling())
