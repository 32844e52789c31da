"""Self-speculation (LayerSkip, arXiv 2404.16710): the target's first layers draft, the others verify.

Each draft runs the first layers on one token, which writes their K/V as any call would, and puts what comes out
through the target's norm and head. The verify goes on from those states: no layer runs twice for a token.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..accept import Verdict
from ..cache import Cache
from ..chain import Chain
from ..context import Context
from ..draft_length import EarlyStop
from ..drafter_specs import EarlyExitSpec
from ..proposal import NOTHING, Proposal
from ..sampler import GREEDY, Sampler
from ..target import Prefilled, Target, Verified

KIND = "early_exit"
DRAWS = True  # its drafts, where the sampler is not greedy


class EarlyExitDrafter:
    def __init__(
        self, target: Target, cache: Cache, sampler: Sampler = GREEDY, early_stop: EarlyStop | None = None
    ) -> None:
        self._target, self._cache, self._sampler, self._early_stop = target, cache, sampler, early_stop
        target.engine.manifest.drafters.of(EarlyExitSpec)
        (self._head,) = target.engine.manifest.graphs_of("exit_head")

    def restart(self, prefilled: Sequence[Prefilled]) -> None: ...

    def propose(self, context: Context, count: int) -> Proposal:
        if count < 1:
            return NOTHING
        chain = Chain(context, self._sampler, self._early_stop)
        states = [self._target.draft_early(self._cache, context.last, 0)["exit_states"]]
        going = True
        while going and len(chain.tokens) < count:
            logits = self._target.engine.run(self._head.name, {"exit_states": states[-1]})["logits"][0, 0]
            going = chain.draft(logits)
            early = self._target.draft_early(self._cache, chain.tokens[-1], len(chain.tokens))
            states.append(early["exit_states"])
        return chain.proposal().begun(states)

    def observe(self, verdict: Verdict, verified: Verified) -> None: ...


def make(target: Target, cache: Cache, sampler: Sampler, early_stop: EarlyStop | None) -> EarlyExitDrafter:
    """Raises PocketdraftError for a bundle without an early exit."""
    return EarlyExitDrafter(target, cache, sampler, early_stop)
