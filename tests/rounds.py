"""Rounds that never ran, as their statistics see them."""

from __future__ import annotations

from collections.abc import Sequence

from pocketdraft.runtime.accept import Verdict
from pocketdraft.runtime.context import Emitted
from pocketdraft.runtime.proposal import Proposal
from pocketdraft.runtime.stats import Stats


def record(stats: Stats, confidences: Sequence[float], accepted: int) -> None:
    """A chain of a draft for each confidence, the first `accepted` of which were right."""
    tokens = (0,) * (accepted + 1)
    proposal = Proposal.chain([0] * len(confidences), confidences=confidences)
    stats.record(proposal, Verdict(tokens[1:], 0, tuple(range(accepted + 1))), Emitted(tokens, accepted, None))
