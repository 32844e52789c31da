"""Gemma 4's multi-token-prediction drafter: small, without a cache of its own, reading the target's K/V.

A draft step takes the embedding of the last token beside a hidden state: the target's own (after the final
norm, where it predicted that token) for the first draft, the drafter's projection for the others. Position
and visible K/V are those of the committed context throughout a draft. It drafts as the target decodes: by argmax, or
drawn after the same temperature, truncation and penalty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..accept import Verdict
from ..cache import Cache
from ..chain import Chain
from ..context import Context
from ..draft_length import EarlyStop
from ..drafter_specs import MTPSpec
from ..proposal import NOTHING, Proposal
from ..sampler import GREEDY, Sampler
from ..target import Floats, Prefilled, Target, Verified

KIND = "mtp"
DRAWS = True  # its drafts, where the sampler is not greedy


class MTPDrafter:
    def __init__(
        self, target: Target, cache: Cache, sampler: Sampler = GREEDY, early_stop: EarlyStop | None = None
    ) -> None:
        self._target, self._cache, self._sampler, self._early_stop = target, cache, sampler, early_stop
        target.engine.manifest.drafters.of(MTPSpec)
        self._graph = target.engine.manifest.graphs_of("draft")[0].name
        self._hidden: Floats | None = None

    def restart(self, prefilled: Sequence[Prefilled]) -> None:
        self._hidden = None

    def propose(self, context: Context, count: int) -> Proposal:
        if self._hidden is None or count < 1:
            return NOTHING
        return self._draft(self._hidden, context, count, self._early_stop).proposal()

    def _draft(self, hidden: Floats, context: Context, count: int, early_stop: EarlyStop | None) -> Chain:
        """At most `count` drafts; `hidden` is [D]."""
        hidden = hidden[None, None]
        place = self._target.positions(self._cache.length - 1, 1)
        token, chain = context.last, Chain(context, self._sampler, early_stop)
        for _ in range(count):
            activations = np.concatenate([self._target.embed(token), hidden], -1)
            outputs = self._target.engine.run(self._graph, {"activations": activations, **place}, self._cache.handle)
            hidden = outputs["projected_activations"]
            if not chain.draft(outputs["logits"][0, 0]):
                break
            token = chain.tokens[-1]
        return chain

    def observe(self, verdict: Verdict, verified: Verified) -> None:
        self._hidden = verified.hidden[verdict.rows[-1]]


def make(target: Target, cache: Cache, sampler: Sampler, early_stop: EarlyStop | None) -> MTPDrafter:
    return MTPDrafter(target, cache, sampler, early_stop)
