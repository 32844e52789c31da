"""What a drafter proposes: a tree of tokens, of which a chain is the case without branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .noise import Probabilities


@dataclass(frozen=True)
class Proposal:
    """Node i is `tokens[i]` after node `parents[i]`; parent -1 is the pending token. Parents come first.

    `probs[i]` is q, float64 [V], that node i was drawn from; None, as where there are none at all, says that the
    drafter did not draw: q is all on the node. `confidences` are the probabilities that the drafter gave its nodes,
    where it was asked for them.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    probs: tuple[Probabilities | None, ...] = field(default=(), compare=False)
    confidences: tuple[float, ...] = field(default=(), compare=False)

    @staticmethod
    def chain(
        tokens: Sequence[int], probs: Sequence[Probabilities | None] = (), confidences: Sequence[float] = ()
    ) -> Proposal:
        return Proposal(tuple(tokens), tuple(range(-1, len(tokens) - 1)), tuple(probs), tuple(confidences))

    def __len__(self) -> int:
        return len(self.tokens)


NOTHING = Proposal.chain(())
