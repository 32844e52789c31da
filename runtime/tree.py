"""Draft trees: which nodes to propose under a budget, and how a verify graph is told of them.

A tree needs no graph of its own. Its rows are written to consecutive slots like a chain's; what makes them a tree is
that each sees only its ancestors, and has the position of its depth.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import PocketdraftError
from .proposal import Proposal

# Of a tree that branches. Graphs cut a sliding window by slots, and a node's slot comes after its position: deeper than
# the window, a node would see ancestors that are out of it. The embedded pair's window is 64, Gemma 4's 512 and more.
DEEPEST = 32


def inputs(proposal: Proposal, start: int, width: int, context: int) -> dict[str, npt.NDArray[Any]]:
    """`input_pos` int32 [T] and `mask` bool [1, 1, T, context] of a call whose pending token lies in slot `start`.

    Node i lies in slot start + 1 + i, at position start + depth, and sees what is committed, the pending token, its
    ancestors and itself. Padding sees nothing but what is committed and itself, and nobody sees it.
    Raises PocketdraftError for a tree deeper than `DEEPEST`.
    """
    depths = proposal.depths
    if max(depths, default=0) > DEEPEST and not proposal.is_chain:
        raise PocketdraftError(
            f"The tree is {max(depths)} deep, {DEEPEST} is the most that every sliding window has room for; "
            "propose a shallower one, or a chain."
        )
    own = np.eye(width, dtype=bool)  # which rows of the call a row sees
    for node, parent in enumerate(proposal.parents):
        own[node + 1] |= own[parent + 1]
    mask = np.zeros((1, 1, width, context), bool)
    mask[..., :start] = True
    mask[0, 0, :, start : start + width] = own
    positions = np.full(width, start, np.int32)
    positions[1 : 1 + len(depths)] += np.array(depths, np.int32)
    return {"input_pos": positions, "mask": mask}


def best_tree(marginals: npt.NDArray[np.floating[Any]], budget: int) -> Proposal:
    """The tree of at most `budget` nodes with the longest expected path, if `marginals` [L, V] were the target's.

    `marginals[k]` is the distribution at depth k + 1, whatever came before, as one pass of a block drafter gives it.
    A path then has the product of its tokens' probabilities, the expected length is the sum over all nodes, and as no
    child exceeds its parent the best `budget` nodes are a tree. They are found best first (DDTree, arXiv 2604.12989):
    a node that is taken brings up its first child and its next sibling, and nothing else can be next. Of equals at
    one depth the lower token comes first, and what cannot happen is left out.
    """
    ranked = [_likeliest(row, budget) for row in marginals]
    tokens: list[int] = []
    parents: list[int] = []
    heap: list[tuple[float, int, int, int]] = []  # minus the path's log-probability, depth - 1, parent, rank

    def offer(weight: float, depth: int, parent: int, rank: int) -> None:
        """`weight` is minus the log-probability of the path to `parent`."""
        if depth < len(ranked) and rank < len(ranked[depth][0]):
            heapq.heappush(heap, (weight - float(ranked[depth][1][rank]), depth, parent, rank))

    offer(0.0, 0, -1, 0)
    while heap and len(tokens) < budget:
        weight, depth, parent, rank = heapq.heappop(heap)
        node, (choices, logs) = len(tokens), ranked[depth]
        tokens.append(int(choices[rank]))
        parents.append(parent)
        offer(weight + float(logs[rank]), depth, parent, rank + 1)
        offer(weight, depth + 1, node, 0)
    return Proposal(tuple(tokens), tuple(parents))


def _likeliest(
    marginal: npt.NDArray[np.floating[Any]], count: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """At most `count` tokens that can happen and their log-probabilities, the likeliest first, the lower of equals."""
    least = np.partition(marginal, -count)[-count] if 0 < count < len(marginal) else 0.0
    tokens = np.flatnonzero((marginal >= least) & (marginal > 0))
    order = np.argsort(-marginal[tokens], kind="stable")[:count]
    return tokens[order], np.log(marginal[tokens[order]].astype(np.float64))
