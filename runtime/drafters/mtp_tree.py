"""The MTP drafter's chain with siblings: what it would have drafted in the place of a draft, under the same parent.

A recurrent drafter pays a call for each node with children. Its logits hold the second and third choices for nothing,
so they become leaves along the chain, each worth a token where the target takes it instead. Which of them, and how
long a chain they are worth, follows from how often each choice was the right one where the drafter was as sure.

An engine that takes no trees gets the plain MTP chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..accept import Verdict
from ..cache import Cache
from ..context import Context
from ..draft_length import EarlyStop
from ..errors import PocketdraftError
from ..proposal import Proposal
from ..sampler import GREEDY, Draft, Sampler
from ..stats import confidence_tenth
from ..target import Target, Verified
from ..tree import DEEPEST
from .mtp import MTPDrafter

KIND = "mtp"
LEARNS = True  # from its own rounds
Shares = npt.NDArray[np.floating[Any]]
RANKS = 4  # choices that are told apart: the draft and three siblings
# How often a draft is right by tenth of its confidence, between what the embedded pair shows of argmaxes and of drawn
# drafts, which share the target's noise; and where it is wrong, each sibling and none of them. For how many tokens.
SUPPOSED = np.array([0.4, 0.4, 0.42, 0.48, 0.58, 0.66, 0.77, 0.83, 0.9, 0.98, 1.0])
SUPPOSED_OF_MISSES = (0.33, 0.15, 0.06, 0.46)
SUPPOSED_TOKENS = 4.0


class MTPTreeDrafter(MTPDrafter):
    def __init__(
        self, target: Target, cache: Cache, sampler: Sampler = GREEDY, early_stop: EarlyStop | None = None
    ) -> None:
        super().__init__(target, cache, sampler, early_stop)
        self._chain: list[tuple[int, Draft]] = []  # the last one: by depth, the tenth of the draft's confidence, and it
        self._choices: dict[int, list[int]] = {}  # tokens by depth, the draft first, as far as they were asked for
        self._start = 0  # the position of the chain's first draft
        # By tenth of the draft's confidence, for how many tokens each choice was right, or none of them.
        self._right = SUPPOSED_TOKENS * np.column_stack([SUPPOSED, np.outer(1 - SUPPOSED, SUPPOSED_OF_MISSES)])

    def propose(self, context: Context, count: int) -> Proposal:
        """The chain comes first, then the siblings: while the target keeps to the chain, no K/V has to move.

        `count` is the number of nodes. Where early stop says how long the chain is, siblings take only the rows that
        its verify graph has anyway.
        """
        self._chain, self._choices = [], {}
        if self._hidden is None or count < 1 or not self._target.takes_trees:
            return super().propose(context, count)
        gains = Gains(self._right[:, :RANKS] / self._right.sum(1, keepdims=True), count)
        chain = self._draft(self._hidden, context, min(count, DEEPEST), self._early_stop or gains)
        drafts, confidences = chain.drafts, chain.confidences
        nodes = min(count, self._target.free_nodes(len(drafts))) if self._early_stop else count
        self._chain = list(zip(map(confidence_tenth, confidences), drafts, strict=True))
        self._start = len(context.tokens)
        tokens, parents = list(chain.tokens), list(range(-1, len(drafts) - 1))
        for depth, rank in gains.best_siblings(confidences, nodes - len(drafts)):
            choices = self._ranked(depth)
            if rank < len(choices):
                tokens.append(choices[rank])
                parents.append(depth - 1)
        return Proposal(tuple(tokens), tuple(parents), (), tuple(confidences) if self._early_stop else ())

    def observe(self, verdict: Verdict, verified: Verified) -> None:
        super().observe(verdict, verified)
        told = zip(self._chain, (*verdict.accepted, verdict.next_token), strict=False)
        for depth, ((tenth, draft), token) in enumerate(told):
            if token != draft.token:  # what comes after is no longer the chain's
                choices = self._ranked(depth)
                self._right[tenth, choices.index(token) if token in choices else RANKS] += 1
                break
            self._right[tenth, 0] += 1

    def _ranked(self, depth: int) -> list[int]:
        """Tokens that could follow the chain's first `depth` drafts, the best first; computed for few depths only."""
        if depth not in self._choices:
            self._choices[depth] = self._sampler.ranking(self._chain[depth][1], self._start + depth, RANKS)
        return self._choices[depth]


@dataclass(frozen=True)
class Gains:
    """What each node is worth to a tree of so many `nodes`: the chance that the target takes it and all before it.

    `shares` [11, RANKS] are how often each choice is right, by tenth of the draft's confidence.
    """

    shares: Shares
    nodes: int

    def enough(self, confidences: Sequence[float]) -> bool:
        """Whether one more draft, if as sure as those before, gains less than the sibling whose place it takes."""
        chain, siblings = self._of(confidences)
        left, ranked = self.nodes - len(chain), np.sort(siblings, axis=None)[::-1]
        return left < 1 or (left <= len(ranked) and bool(chain[-1] ** (1 + 1 / len(chain)) < ranked[left - 1]))

    def best_siblings(self, confidences: Sequence[float], count: int) -> list[tuple[int, int]]:
        """Depth (0 for the pending token's children) and rank (from 1) of the `count` that gain most."""
        _, siblings = self._of(confidences)
        best = np.argsort(-siblings, axis=None, kind="stable")[: max(0, count)]
        return [(int(index) // (RANKS - 1), int(index) % (RANKS - 1) + 1) for index in best]

    def _of(self, confidences: Sequence[float]) -> tuple[Shares, Shares]:
        """Of the drafts of a chain [n], and of their siblings [n, RANKS - 1]."""
        shares = self.shares[[confidence_tenth(confidence) for confidence in confidences]]
        chain = np.cumprod(shares[:, 0])
        return chain, np.concatenate([[1.0], chain[:-1]])[:, None] * shares[:, 1:]


def make(target: Target, cache: Cache, sampler: Sampler, early_stop: EarlyStop | None) -> MTPTreeDrafter:
    """Raises PocketdraftError for a sampler that accepts by rejection."""
    if sampler.rejects:
        raise PocketdraftError(
            "The drafter mtp_tree proposes trees, rejection takes a chain; accept by exact match, or draft with mtp."
        )
    return MTPTreeDrafter(target, cache, sampler, early_stop)
