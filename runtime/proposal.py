"""What a drafter proposes: a tree of tokens, of which a chain is the case without branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .noise import Probabilities


@dataclass(frozen=True)
class Proposal:
    """Node i is `tokens[i]` after node `parents[i]`; parent -1 is the pending token. Parents come first.

    `probs[i]` is q, float64 [V], that node i was drawn from; None, as where there are none at all, says that the
    drafter did not draw: q is all on the node. `confidences` say how sure the drafter is of its nodes (`Draft`),
    where it was asked; of a tree, of the chain that its first nodes are. `states`, of the pending token and
    each node, are where the target's first layers drafted: see `Target.draft_early`.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    probs: tuple[Probabilities | None, ...] = field(default=(), compare=False)
    confidences: tuple[float, ...] = field(default=(), compare=False)
    states: tuple[npt.NDArray[np.float32], ...] | None = field(default=None, compare=False)

    @staticmethod
    def chain(
        tokens: Sequence[int], probs: Sequence[Probabilities | None] = (), confidences: Sequence[float] = ()
    ) -> Proposal:
        return Proposal(tuple(tokens), tuple(range(-1, len(tokens) - 1)), tuple(probs), tuple(confidences))

    def begun(self, states: Sequence[npt.NDArray[np.float32]]) -> Proposal:
        """With the states of the pending token and of each node, of which the first layers have run."""
        return replace(self, states=tuple(states))

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def is_chain(self) -> bool:
        return self.parents == tuple(range(-1, len(self) - 1))

    @property
    def depths(self) -> list[int]:
        """By node, how many steps it is from the pending token: 1 for its children."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return depths

    def reach(self, node: int) -> int:
        """The depth of the deepest node at or below `node`; -1, the pending token, has all of them below it."""
        depths, below = self.depths, {node}
        for child in range(node + 1, len(self)):
            if self.parents[child] in below:
                below.add(child)
        return max(depths[one] if one >= 0 else 0 for one in below)


NOTHING = Proposal.chain(())
