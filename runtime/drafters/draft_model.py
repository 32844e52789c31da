"""An independent draft model: a smaller model of the same tokenizer, which decodes on K/V of its own.

It needs nothing of the target, so it is the one drafter that can be had without training for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from ..accept import Verdict
from ..cache import Cache
from ..chain import Chain
from ..context import Context
from ..draft_length import EarlyStop
from ..drafter_specs import DraftModelSpec
from ..engine import Delegating, Engine
from ..graphs import KVLayer
from ..manifest import Manifest
from ..proposal import NOTHING, Proposal
from ..sampler import GREEDY, Sampler
from ..target import Prefilled, Target, Verified

KIND = "draft_model"
DRAWS = True  # its drafts, where the sampler is not greedy
PREFIX = "model_"  # of roles


class DraftModelDrafter:
    def __init__(
        self, target: Target, cache: Cache, sampler: Sampler = GREEDY, early_stop: EarlyStop | None = None
    ) -> None:
        target.engine.manifest.drafters.of(DraftModelSpec)
        self._model = Target(_Model(target.engine))
        self._cache = Cache(cache.handle, cache.capacity)
        self._sampler, self._early_stop = sampler, early_stop
        self._read: list[int] = []  # tokens whose K/V its cache holds
        self._same = 0  # so many of them are the context's, as was seen

    def restart(self, prefilled: Sequence[Prefilled]) -> None:
        self._same = 0

    def propose(self, context: Context, count: int) -> Proposal:
        if count < 1:
            return NOTHING
        self._catch_up(context.tokens)
        token, chain = context.last, Chain(context, self._sampler, self._early_stop)
        for _ in range(count):
            logits = self._model.verify(self._cache, token, NOTHING).logits[0]
            self._cache.advance(1)
            self._read.append(token)
            if not chain.draft(logits):
                break
            token = chain.tokens[-1]
        return chain.proposal()

    def observe(self, verdict: Verdict, verified: Verified) -> None: ...

    def _catch_up(self, tokens: Sequence[int]) -> None:
        """Goes back to what its cache shares with the context, and reads the rest but for the pending token."""
        pairs = zip(self._read[self._same :], tokens[self._same : -1], strict=False)
        shared = self._same + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._model.rewind(self._cache, shared)
        del self._read[self._cache.length :]
        self._model.prefill(self._cache, tokens[self._cache.length : -1])
        self._read += tokens[len(self._read) : -1]
        self._same = len(self._read)


class _Model(Delegating):
    """The engine, as if the draft model were its target."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.manifest, self.takes_trees = _own(engine.manifest), False


def _own(manifest: Manifest) -> Manifest:
    """The manifest with the draft model's graphs as the target's, and their K/V."""
    graphs = [graph for graph in manifest.graphs if graph.role.startswith(PREFIX)]
    moved = [graph.model_copy(update={"role": graph.role.removeprefix(PREFIX)}) for graph in graphs]
    keys = {t.name: t.shape for g in moved for t in g.inputs if t.is_kv and "kv_cache_k" in t.name}
    layers = [
        KVLayer(
            layer=index,
            kind="full" if slots == manifest.context_length else "sliding",
            heads=heads,
            head_dim=size,
            slots=slots if slots < manifest.context_length else None,
        )
        for index, (_, heads, slots, size) in enumerate(keys.values())
    ]
    return manifest.model_copy(update={"graphs": tuple(moved), "kv": tuple(layers)})


def make(target: Target, cache: Cache, sampler: Sampler, early_stop: EarlyStop | None) -> DraftModelDrafter:
    """Raises PocketdraftError for a bundle without a draft model."""
    return DraftModelDrafter(target, cache, sampler, early_stop)
