"""Which drafts stand, and what comes after them. Either rule leaves the output's distribution the target's.

**Exact match** draws the target's own token at each node with the noise of its position, and walks on while that
token is a child of the node. The text is therefore a function of the target and the seed alone: whatever drafts, and
however many, it is token for token what plain decoding gives with that seed. There is one lane, TARGET, and the
drafter may use it too: nothing that the drafter does can reach the output.

**Rejection** (Leviathan et al., arXiv 2211.17192) accepts the draft x with probability min(1, p(x) / q(x)), else draws
from (p - q)+. Its text depends on the drafts. At one position three draws must be independent, hence their lanes:

- DRAFT, the drafter's x ~ q;
- ACCEPT, the test: given x it must still be uniform, so it is not DRAFT's;
- TARGET, the token of the target's own: given a rejection, x is no longer distributed as q and the test's number is
  known to be high, so it is neither's. The residual and the bonus share it, since a position that has a refused draft
  has no bonus.

And no lane may be used twice at a position: a round drafts far beyond the token that it emits, and the next one is
there again. Were it to draw the same noise, whatever the loop had learnt meanwhile, and how long it drafts now, would
depend on the draw to come. Each round therefore has a child of the noise, by the length of the context at its start.
Within a round a draft that was drawn is always put to the test: leaving it out for what it is would change q.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import PocketdraftError
from .noise import Lane, Probabilities
from .proposal import Proposal
from .sampler import Sampler

Rows = npt.NDArray[np.floating[Any]]


class Verdict(NamedTuple):
    """`accepted` drafts in order, then `next_token`, which is the target's own.

    `rows` are the rows of the verify call whose K/V stays: row 0, the pending token's, and one per accepted
    draft. The last of them is where `next_token` was predicted.
    """

    accepted: tuple[int, ...]
    next_token: int
    rows: tuple[int, ...]


def accept(logits: Rows, proposal: Proposal, tokens: Sequence[int], sampler: Sampler) -> Verdict:
    """By the sampler's rule; at temperature 0 that is the argmax's walk.

    `logits` is [1 + N, V]: row 0 after the pending token, row i + 1 after node i. Rows are looked at only as far as
    the walk goes. `tokens` are those of the context, the pending one last.
    """
    if sampler.rejects:
        return rejection(logits, proposal, tokens, sampler)
    if sampler.takes_argmax:
        return greedy(logits, proposal)
    return exact(logits, proposal, tokens, sampler)


def greedy(logits: Rows, proposal: Proposal) -> Verdict:
    """Walks the proposal while the target's argmax is one of its nodes.

    Of equal logits the lowest token wins, as in transformers and LiteRT-LM.
    """
    return _walk(proposal, lambda row, path: int(logits[row].argmax()))


def exact(logits: Rows, proposal: Proposal, tokens: Sequence[int], sampler: Sampler) -> Verdict:
    """Walks the proposal, a tree or a chain, while the token that the sampler chooses is one of its nodes."""
    return _walk(proposal, lambda row, path: sampler.choose(logits[row], [*tokens, *path]))


def rejection(logits: Rows, proposal: Proposal, tokens: Sequence[int], sampler: Sampler) -> Verdict:
    """Accepts each draft of a chain with probability min(1, p / q), in order, until one is refused."""
    if not proposal.is_chain:
        raise PocketdraftError("The proposal is a tree, rejection takes a chain; accept trees by exact match.")
    noise, start = sampler.noise.child(len(tokens)), len(tokens)
    for row in range(len(proposal) + 1):
        path = proposal.tokens[:row]
        weights = sampler.probabilities(logits[row], [*tokens, *path])
        if row < len(proposal):
            token = proposal.tokens[row]
            q = proposal.probs[row] if proposal.probs else None
            if noise.uniform(Lane.ACCEPT, start + row) * (1.0 if q is None else q[token]) < weights[token]:
                continue
            weights = _residual(weights, q, token)
        return Verdict(path, noise.draw(weights, Lane.TARGET, start + row), tuple(range(row + 1)))
    raise AssertionError("the row after the last draft has no draft to accept")


def _walk(proposal: Proposal, choose: Callable[[int, list[int]], int]) -> Verdict:
    """`choose(row, path)` gives the target's token of a row, after the accepted drafts `path`."""
    rows: list[int] = [0]
    accepted: list[int] = []
    token = choose(0, accepted)
    for node, drafted in enumerate(proposal.tokens):
        if drafted == token and proposal.parents[node] == rows[-1] - 1:
            accepted.append(token)
            rows.append(node + 1)
            token = choose(node + 1, accepted)
    return Verdict(tuple(accepted), token, tuple(rows))


def _residual(p: Probabilities, q: Probabilities | None, token: int) -> Probabilities:
    """(p - q)+, not normalised, as a draw does not ask for it. All 0 only if p = q up to rounding: then p."""
    if q is None:
        weights = p.copy()
        weights[token] = 0.0
    else:
        weights = np.maximum(p - q, 0.0)
    return weights if weights.any() else p
