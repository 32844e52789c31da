"""What a drafter proposes: a tree of tokens, of which a chain is the case without branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Proposal:
    """Node i is `tokens[i]` after node `parents[i]`; parent -1 is the pending token. Parents come first."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]

    @staticmethod
    def chain(tokens: Sequence[int]) -> Proposal:
        return Proposal(tuple(tokens), tuple(range(-1, len(tokens) - 1)))

    def __len__(self) -> int:
        return len(self.tokens)


NOTHING = Proposal.chain(())
