"""No drafter: plain decoding, one token a round."""

from __future__ import annotations

from collections.abc import Sequence

from ..accept import Verdict
from ..cache import Cache
from ..context import Context
from ..draft_length import EarlyStop
from ..proposal import NOTHING, Proposal
from ..sampler import Sampler
from ..target import Prefilled, Target, Verified


class NoDrafter:
    def restart(self, prefilled: Sequence[Prefilled]) -> None: ...

    def propose(self, context: Context, count: int) -> Proposal:
        return NOTHING

    def observe(self, verdict: Verdict, verified: Verified) -> None: ...


def make(target: Target, cache: Cache, sampler: Sampler, early_stop: EarlyStop | None) -> NoDrafter:
    return NoDrafter()
