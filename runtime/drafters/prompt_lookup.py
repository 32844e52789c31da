"""Prompt lookup: what followed the last few tokens the last time they occurred. Needs no weights."""

from __future__ import annotations

from ..accept import Verdict
from ..cache import Cache
from ..context import Context
from ..draft_length import EarlyStop
from ..proposal import NOTHING, Proposal
from ..sampler import Sampler
from ..target import Target, Verified

LONGEST_MATCH = 3


class PromptLookup:
    def restart(self) -> None: ...

    def propose(self, context: Context, count: int) -> Proposal:
        tokens = context.tokens
        for length in range(min(LONGEST_MATCH, len(tokens) - 1), 0, -1):
            key = tokens[-length:]
            for start in range(len(tokens) - length - 1, -1, -1):
                if tokens[start : start + length] == key:
                    return Proposal.chain(tokens[start + length : start + length + max(count, 0)])
        return NOTHING

    def observe(self, verdict: Verdict, verified: Verified) -> None: ...


def make(target: Target, cache: Cache, sampler: Sampler, early_stop: EarlyStop | None) -> PromptLookup:
    return PromptLookup()
