"""Prompt lookup: what followed the last few tokens the last time they occurred. Needs no weights."""

from __future__ import annotations

from collections.abc import Sequence

from ..accept import Verdict
from ..cache import Cache
from ..context import Context
from ..draft_length import EarlyStop
from ..proposal import NOTHING, Proposal
from ..sampler import Sampler
from ..target import Prefilled, Target, Verified

LONGEST_MATCH = 3


class PromptLookup:
    def restart(self, prefilled: Sequence[Prefilled]) -> None: ...

    def propose(self, context: Context, count: int) -> Proposal:
        found, _ = look_up(context.tokens, count)
        return Proposal.chain(found) if found else NOTHING

    def observe(self, verdict: Verdict, verified: Verified) -> None: ...


def look_up(tokens: Sequence[int], count: int) -> tuple[list[int], int]:
    """At most `count` tokens that followed the last ones before, and how many of those they followed."""
    for length in range(min(LONGEST_MATCH, len(tokens) - 1), 0, -1):
        key = tokens[-length:]
        for start in range(len(tokens) - length - 1, -1, -1):
            if tokens[start : start + length] == key:
                return list(tokens[start + length : start + length + max(count, 0)]), length
    return [], 0


def make(target: Target, cache: Cache, sampler: Sampler, early_stop: EarlyStop | None) -> PromptLookup:
    return PromptLookup()
