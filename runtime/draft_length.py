"""How many drafts the next round asks for, and when its drafter has made enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .stats import Stats, confidence_tenth

PRIOR_DRAFTS = 2.0  # how many drafts the supposed shares count for, until there are real ones


class DraftLength(Protocol):
    def next(self, stats: Stats) -> int: ...


class EarlyStop(Protocol):
    def enough(self, confidences: Sequence[float]) -> bool:
        """Whether to stop at the drafts made so far, given the probability that the drafter gave each."""


@dataclass(frozen=True)
class Fixed:
    drafts: int

    def next(self, stats: Stats) -> int:
        return self.drafts


@dataclass
class Confident:
    """Stops drafting where one more draft would gain less than its time is worth, by what was accepted so far.

    A draft counts if all before it do. Its chance to be reached is the product over those of the share accepted at
    their confidence, which is learnt by tenths of confidence from the drafts that the target has looked at; to be
    accepted itself, the share over all. Its time would otherwise give tokens at the rate so far. So stop when

        reached * accepted < draft time * tokens emitted / time taken.

    Reaching can only fall from draft to draft, so what does not pay now will not pay later. If confidence tells
    nothing, all tenths learn the same share, and the rule finds the length that fits it.

    `cost` is a draft's time over a verify's, None for what the session measures. Times differ from run to run, and
    with them the lengths: that changes no token of greedy or exact-match output, but it does change what rejection
    draws. Give `cost` for the same text each time there.

    The first draft of a round is always made, or nothing would be learnt. What a verify takes longer for one more
    draft is not measured, and counts as free: where it is much, say so by `cost` or `longest`.
    """

    longest: int = 16
    cost: float | None = None
    _stats: Stats = field(default_factory=Stats, init=False, repr=False)
    _least: float = field(default=0.0, init=False, repr=False)  # the chance to be reached from which a draft pays

    def next(self, stats: Stats) -> int:
        self._stats, cost = stats, self._cost(stats)
        accepted = sum(drafts for (_, was), drafts in stats.judged.items() if was)
        share = _share(accepted, stats.judged.total() - accepted, 1.0)
        # One round of a single token is supposed to have gone before, so that there is a rate to begin with.
        rate = (stats.emitted + 1) / (stats.rounds + cost * stats.proposed + 1)
        self._least = cost * rate / share
        return self.longest

    def enough(self, confidences: Sequence[float]) -> bool:
        judged, reached = self._stats.judged, 1.0
        for confidence in confidences:
            tenth = confidence_tenth(confidence)
            reached *= _share(judged[tenth, True], judged[tenth, False], confidence)
        return reached < self._least

    def _cost(self, stats: Stats) -> float:
        if self.cost is not None or not stats.proposed:
            return self.cost or 0.0
        verify_s = (stats.seconds["verify"] + stats.seconds["host"]) / stats.rounds
        return stats.seconds["draft"] / stats.proposed / verify_s


def _share(accepted: int, refused: int, supposed: float) -> float:
    """Of drafts, as if a few of them had been accepted at the supposed rate."""
    return (accepted + PRIOR_DRAFTS * supposed) / (accepted + refused + PRIOR_DRAFTS)
