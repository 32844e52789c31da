"""DFlash (arXiv 2602.06036): a block of drafts in one pass, as a diffusion model fills in masked tokens.

The drafter keeps K/V of the committed positions, made of hidden states that the target's layers had there, and reads
them beside a block: the pending token and masks. The block's own K/V are scratch, in slots that the next committed
positions take. Its hidden states go through the target's head: a distribution at each mask, whatever the masks before
turn out to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..accept import Verdict
from ..cache import Cache
from ..chain import Chain
from ..context import Context
from ..draft_length import EarlyStop
from ..drafter_specs import DFlashSpec
from ..followed import calls
from ..proposal import Proposal
from ..sampler import GREEDY, Sampler
from ..sampling import Logits
from ..target import Prefilled, Target, Verified

KIND = "dflash"
DRAWS = True  # its drafts, where the sampler is not greedy


class DFlashDrafter:
    def __init__(
        self, target: Target, cache: Cache, sampler: Sampler = GREEDY, early_stop: EarlyStop | None = None
    ) -> None:
        manifest = target.engine.manifest
        self._target, self._cache, self._sampler, self._early_stop = target, cache, sampler, early_stop
        self._spec = manifest.drafters.of(DFlashSpec)
        self._contexts = manifest.graphs_of("dflash_context")
        (self._graph,) = manifest.graphs_of("dflash_draft")
        self._head = next(graph for graph in manifest.graphs_of("head") if graph.width == self._spec.block)

    def restart(self, prefilled: Sequence[Prefilled]) -> None:
        for chunk in prefilled:
            assert chunk.taps is not None
            self._commit(chunk.start, chunk.taps)

    def propose(self, context: Context, count: int) -> Proposal:
        logits = self._logits(context, count)
        chain = Chain(context, self._sampler, self._early_stop)
        for row in logits[: max(0, count)]:
            if not chain.draft(row):
                break
        return chain.proposal()

    def observe(self, verdict: Verdict, verified: Verified) -> None:
        assert verified.taps is not None
        rows = list(verdict.rows)
        self._commit(self._cache.length - len(rows), verified.taps[rows])

    def _logits(self, context: Context, count: int) -> Logits:
        """[block - 1, V] at the masks; no rows where there is nothing to draft from, or no room for a block."""
        start, block = self._cache.length, self._spec.block
        known = self._cache.followed(KIND)
        if count < 1 or known.stop != start or not len(known) or self._cache.room < block:
            return np.zeros((0, self._target.engine.manifest.vocab_size), np.float32)
        tokens = [context.last, *[self._spec.mask_token] * (block - 1)]
        mask = np.zeros((1, 1, block, self._cache.capacity), bool)
        mask[..., known.start : start + block] = True
        inputs: dict[str, npt.NDArray[Any]] = {
            "embeddings": np.concatenate([self._target.embed(token) for token in tokens], 1),
            "input_pos": np.arange(start, start + block, dtype=np.int32),
            "mask": mask,
        }
        engine = self._target.engine
        hidden = engine.run(self._graph.name, inputs, self._cache.handle)["activations"]
        logits: Logits = engine.run(self._head.name, {"activations": hidden})["logits"][0, 1:]
        return logits

    def _commit(self, start: int, taps: npt.NDArray[np.float32]) -> None:
        """K/V of the positions from `start` on, of which `taps` [T, K] are the target's states."""
        for graph, first, _, (rows,) in calls(self._contexts, start, [taps], self._cache.capacity):
            inputs = {"taps": rows, "input_pos": np.arange(first, first + graph.width, dtype=np.int32)}
            self._target.engine.run(graph.name, inputs, self._cache.handle)
        self._cache.follow(KIND, range(start, start + len(taps)))


def make(target: Target, cache: Cache, sampler: Sampler, early_stop: EarlyStop | None) -> DFlashDrafter:
    """Raises PocketdraftError for a bundle without a DFlash drafter."""
    return DFlashDrafter(target, cache, sampler, early_stop)
