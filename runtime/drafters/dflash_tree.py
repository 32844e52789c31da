"""DDTree (arXiv 2604.12989): of DFlash's distributions, one for each depth, the tree that is expected to go farthest.

`count` is the number of nodes. The tokens that the target takes do not depend on how the tree was chosen: at every
node they are its own, so nothing has to be known of the drafter's probabilities. An engine that takes no trees gets
DFlash's chain.
"""

from __future__ import annotations

import numpy as np

from ..cache import Cache
from ..context import Context
from ..draft_length import EarlyStop
from ..errors import PocketdraftError
from ..proposal import NOTHING, Proposal
from ..sampler import Sampler
from ..target import Target
from ..tree import DEEPEST, best_tree
from .dflash import DFlashDrafter

KIND = "dflash"


class DFlashTreeDrafter(DFlashDrafter):
    def propose(self, context: Context, count: int) -> Proposal:
        if not self._target.takes_trees:
            return super().propose(context, count)
        logits = self._logits(context, count)[: min(count, DEEPEST)]  # no tree of so many nodes is deeper
        if not len(logits):
            return NOTHING
        return best_tree(np.stack([self._sampler.likely(row, context.tokens) for row in logits]), count)


def make(target: Target, cache: Cache, sampler: Sampler, early_stop: EarlyStop | None) -> DFlashTreeDrafter:
    """Raises PocketdraftError for a bundle without a DFlash drafter, and for a sampler that accepts by rejection."""
    if sampler.rejects:
        raise PocketdraftError(
            "The drafter dflash_tree proposes trees, rejection takes a chain; accept by exact match, or draft with "
            "dflash."
        )
    return DFlashTreeDrafter(target, cache, sampler, early_stop)
