"""Gemma 4's multi-token-prediction drafter: small, without a cache of its own, reading the target's K/V.

A draft step takes the embedding of the last token beside a hidden state: the target's own (after the final
norm, where it predicted that token) for the first draft, the drafter's projection for the others. Position
and visible K/V are those of the committed context throughout a draft.
"""

from __future__ import annotations

import numpy as np

from ..accept import Verdict
from ..cache import Cache
from ..context import Context
from ..proposal import NOTHING, Proposal
from ..target import Floats, Target, Verified


class MTPDrafter:
    def __init__(self, target: Target, cache: Cache) -> None:
        self._target, self._cache = target, cache
        self._graph = target.engine.manifest.graphs_of("draft")[0].name
        self._hidden: Floats | None = None

    def restart(self) -> None:
        self._hidden = None

    def propose(self, context: Context, count: int) -> Proposal:
        if self._hidden is None or count < 1:
            return NOTHING
        place = self._target.positions(self._cache.length - 1, 1)
        hidden, token, tokens = self._hidden, context.last, []
        for _ in range(count):
            activations = np.concatenate([self._target.embed(token), hidden], -1)
            outputs = self._target.engine.run(self._graph, {"activations": activations, **place}, self._cache.handle)
            hidden, token = outputs["projected_activations"], int(outputs["logits"][0, 0].argmax())
            tokens.append(token)
        return Proposal.chain(tokens)

    def observe(self, verdict: Verdict, verified: Verified) -> None:
        self._hidden = verified.hidden[verdict.rows[-1]][None, None]


def make(target: Target, cache: Cache) -> MTPDrafter:
    return MTPDrafter(target, cache)
