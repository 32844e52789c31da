"""The MTP drafter's chain with siblings: what it would have drafted in the place of a draft, under the same parent.

A recurrent drafter pays a call for each node with children. Its logits hold the second and third choices for nothing,
so they become leaves along the chain, each worth a token where the target takes it instead. Which of them, and how
long a chain they are worth, is learnt from how often each choice was the right one at each depth.

An engine that takes no trees (ExecuTorch) gets the plain MTP chain.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..accept import Verdict
from ..cache import Cache
from ..context import Context
from ..draft_length import EarlyStop
from ..errors import PocketdraftError
from ..proposal import Proposal
from ..sampler import GREEDY, Sampler
from ..target import Target, Verified
from ..tree import DEEPEST
from .mtp import MTPDrafter

Shares = npt.NDArray[np.float64]
RANKS = 4  # choices that are told apart: the draft and three siblings
# What is supposed of them at any depth until it is known, as so many tokens would tell.
SUPPOSED, SUPPOSED_TOKENS = np.array([0.7, 0.1, 0.04, 0.03]), 16.0
POOLED_TOKENS = 16.0  # for how many tokens of its own the shares of all depths count at one of them


class MTPTreeDrafter(MTPDrafter):
    def __init__(
        self, target: Target, cache: Cache, sampler: Sampler = GREEDY, early_stop: EarlyStop | None = None
    ) -> None:
        super().__init__(target, cache, sampler, early_stop)
        self._choices: list[list[int]] = []  # of the last chain by depth, the draft first
        self._right = np.zeros((DEEPEST, RANKS + 1))  # by depth: tokens that were each choice, or none of them

    def propose(self, context: Context, count: int) -> Proposal:
        """The chain comes first, then the siblings: while the target keeps to the chain, no K/V has to move.

        `count` is the number of nodes. Where early stop says how long the chain is, siblings take only the rows that
        its verify graph has anyway.
        """
        self._choices = []
        if self._hidden is None or count < 1 or not self._target.takes_trees:
            return super().propose(context, count)
        shares = self._shares()
        length = min(count, DEEPEST) if self._early_stop else _length(shares, count)
        drafts, confidences = self._draft(self._hidden, context, length)
        budget = min(count, self._target.free_nodes(len(drafts))) if self._early_stop else count
        start = len(context.tokens)
        self._choices = [self._sampler.ranking(draft, start + depth, RANKS) for depth, draft in enumerate(drafts)]
        tokens, parents = [draft.token for draft in drafts], list(range(-1, len(drafts) - 1))
        for depth, rank in _siblings(shares, len(drafts), budget - len(drafts)):
            if rank < len(self._choices[depth]):
                tokens.append(self._choices[depth][rank])
                parents.append(depth - 1)
        return Proposal(tuple(tokens), tuple(parents), (), tuple(confidences))

    def observe(self, verdict: Verdict, verified: Verified) -> None:
        super().observe(verdict, verified)
        told = zip(self._choices, (*verdict.accepted, verdict.next_token), strict=False)
        for depth, (choices, token) in enumerate(told):
            rank = choices.index(token) if token in choices else RANKS
            self._right[depth, rank] += 1
            if rank:  # what comes after is no longer the chain's
                break

    def _shares(self) -> Shares:
        """float64 [DEEPEST, RANKS]: how often each choice is right where the chain before it is."""
        known, every = self._right, self._right.sum(0)
        pooled = (every[:RANKS] + SUPPOSED_TOKENS * SUPPOSED) / (every.sum() + SUPPOSED_TOKENS)
        shares: Shares = (known[:, :RANKS] + POOLED_TOKENS * pooled) / (known.sum(1, keepdims=True) + POOLED_TOKENS)
        return shares


def _gains(shares: Shares) -> Shares:
    """[DEEPEST, RANKS]: the chance that a node is accepted, which is what it adds to the round's expected tokens."""
    reached = np.cumprod(np.concatenate([[1.0], shares[:-1, 0]]))
    return reached[:, None] * shares


def _length(shares: Shares, count: int) -> int:
    """How many of the `count` nodes that gain most are the chain's."""
    gains, length = _gains(shares), 1
    while length < min(count, DEEPEST):
        siblings = np.sort(gains[:length, 1:], axis=None)[::-1]
        left = count - length
        if left <= len(siblings) and gains[length, 0] < siblings[left - 1]:
            break  # the next node of the chain gains less than the sibling whose place it would take
        length += 1
    return length


def _siblings(shares: Shares, length: int, count: int) -> list[tuple[int, int]]:
    """Depth (0 for the pending token's children) and rank of the `count` siblings of a chain that gain most."""
    gains = _gains(shares)[:length, 1:]
    best = np.argsort(-gains, axis=None, kind="stable")[: max(0, count)]
    return [(int(index) // (RANKS - 1), int(index) % (RANKS - 1) + 1) for index in best]


def make(target: Target, cache: Cache, sampler: Sampler, early_stop: EarlyStop | None) -> MTPTreeDrafter:
    """Raises PocketdraftError for a sampler that accepts by rejection."""
    if sampler.rejects:
        raise PocketdraftError(
            "The drafter mtp_tree proposes trees, rejection takes a chain; accept by exact match, or draft with mtp."
        )
    return MTPTreeDrafter(target, cache, sampler, early_stop)
