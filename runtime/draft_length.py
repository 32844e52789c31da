"""How many drafts the next round asks for, and when its drafter has made enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from .cost import RoundCost, Times
from .schedule import Judged, Schedule, schedule
from .stats import Stats

PROBE_EVERY = 32  # rounds: where drafting does not pay, one draft in so many tells whether it does by now
RELEARN_FIRST, RELEARN_EVERY = (1, 2, 4, 8, 16, 32), 64  # rounds after which the schedule is made anew


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


@dataclass(frozen=True)
class Scheduled:
    """Stops by a table made beforehand, as `pocketdraft tune` does. Nothing in it depends on what things take now."""

    schedule: Schedule

    def next(self, stats: Stats) -> int:
        return self.schedule.longest

    def enough(self, confidences: Sequence[float]) -> bool:
        return self.schedule.enough(confidences)


@dataclass
class Confident:
    """Stops drafting where more drafts would gain less than their time is worth, by what was accepted so far.

    That is `schedule.py`'s rule, of shares that are learnt from the drafts that the target has looked at. Where even
    the first draft does not pay it is left out, but for one round in many, or nothing would be learnt any more.

    `cost` is what rounds take, or a draft's time over a verify's if that is the same whatever its width; None is what
    this session's target measures. Times differ from run to run, and with them the lengths: that changes no token of
    greedy or exact-match output, but it does change what rejection draws. Give `cost` for the same text there.
    """

    longest: int = 16
    cost: RoundCost | float | None = None
    times: Times | None = field(default=None, init=False, repr=False)
    _schedule: Schedule | None = field(default=None, init=False, repr=False)  # None: nothing is known yet
    _rate: float = field(default=0.0, init=False, repr=False)

    def next(self, stats: Stats) -> int:
        if stats.rounds in RELEARN_FIRST or stats.rounds % RELEARN_EVERY == 0:
            self._learn(stats)
        if self._schedule is None or self._schedule.longest:
            return self.longest
        return min(self.longest, stats.rounds % PROBE_EVERY == 0)

    def enough(self, confidences: Sequence[float]) -> bool:
        return self._schedule is not None and self._schedule.enough(confidences)

    def _learn(self, stats: Stats) -> None:
        cost = self._cost()
        if cost:
            # Each time is one more turn towards the rate at which time is rightly priced; the first has two.
            judged, rate = Judged.of(stats.judged), self._rate or 1 / cost.seconds(0)
            if not self._rate:
                _, rate = schedule(cost, judged, self.longest, rate)
            self._schedule, self._rate = schedule(cost, judged, self.longest, rate)

    def _cost(self) -> RoundCost | None:
        if isinstance(self.cost, RoundCost):
            return self.cost
        if self.cost is not None:
            return RoundCost.flat(self.cost, self.longest)
        return self.times.cost() if self.times else None


Drafts: TypeAlias = int | Scheduled | Confident
"""Their number in a round, or a policy that stops drafting early."""
