"""Which drafts stand, and what comes after them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .proposal import Proposal


@dataclass(frozen=True)
class Verdict:
    """`accepted` drafts in order, then `next_token`, which is the target's own.

    `rows` are the rows of the verify call whose K/V stays: row 0, the pending token's, and one per accepted
    draft. The last of them is where `next_token` was predicted.
    """

    accepted: tuple[int, ...]
    next_token: int
    rows: tuple[int, ...]


def greedy(logits: npt.NDArray[np.float32], proposal: Proposal) -> Verdict:
    """Walks the proposal while the target's argmax is one of its nodes.

    `logits` is [1 + N, V]: row 0 after the pending token, row i + 1 after node i. Of equal logits the lowest
    token wins, as in transformers and LiteRT-LM.
    """
    choices = logits.argmax(-1)
    node, rows = -1, [0]
    accepted: list[int] = []
    while True:
        choice = int(choices[node + 1])
        child = _child(proposal, node, choice)
        if child is None:
            return Verdict(tuple(accepted), choice, tuple(rows))
        node = child
        accepted.append(choice)
        rows.append(child + 1)


def _child(proposal: Proposal, parent: int, token: int) -> int | None:
    for node in range(parent + 1, len(proposal)):
        if proposal.parents[node] == parent and proposal.tokens[node] == token:
            return node
    return None
