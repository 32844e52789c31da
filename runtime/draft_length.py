"""How many drafts the next round asks for, and when its drafter has made enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

import numpy as np

from .cost import RoundCost, Times
from .manifest import Tuned
from .schedule import Floats, Judged, Schedule, schedule, table
from .stats import TENTHS, Stats

PROBE_SHARE = 0.005  # of the time: where drafting does not pay, a draft now and then tells whether it does by now
UNSURE = 0.5  # or, while n drafts were judged, this over the square of n
PLAIN_FIRST = 4  # rounds: nothing that comes after would tell what not drafting takes, and so whether it is better
RELEARN_EVERY = 64  # rounds, at the most, after which the schedule is made anew
EVIDENCE = 8.0  # and where an eighth as many drafts were judged since as it was made of,
PROBES = 4.0  # or, where it does not draft, so many
REMEMBERED_DRAFTS, PRIOR_WEIGHT = 1024.0, 64.0  # of other sequences, and for how many they count in a new one


class DraftLength(Protocol):
    def next(self, stats: Stats) -> int: ...


class EarlyStop(Protocol):
    def enough(self, confidences: Sequence[float]) -> bool:
        """Whether to stop at the drafts made so far, given the probability that the drafter gave each."""


class Never:
    """An early stop that asks how sure the drafter is, and lets it go on."""

    def enough(self, confidences: Sequence[float]) -> bool:
        return False


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


def _none_judged() -> Floats:
    return np.zeros((TENTHS, 2))


@dataclass
class Experience:
    """What the sequences of one target have taught: what rounds take, and how sure its drafter should be."""

    times: Times
    judged: Floats = field(default_factory=_none_judged)
    schedule: Schedule | None = None
    rate: float = 0.0
    unlearnt: float = 0.0  # drafts judged since the schedule was made
    idle: int = 0  # rounds without a draft, since the last one
    probe_after: int = 0  # such rounds

    def judge(self, judged: Floats) -> None:
        """Old drafts count less and less."""
        self.judged += judged
        self.unlearnt += float(judged.sum())
        if self.judged.sum() > REMEMBERED_DRAFTS:
            self.judged /= 2


@dataclass
class Confident:
    """Stops drafting where more drafts would gain less than their time is worth, by what was accepted so far.

    That is `schedule.py`'s rule, of shares that are learnt from the drafts that the target has looked at. Where even
    the first draft does not pay it is left out, but for one round in many, or nothing would be learnt any more.

    `cost` is what rounds take, or a draft's time over a verify's if that is the same whatever its width. Such a policy
    starts anew with each sequence. None is what the target measures, and then it starts from what other sequences
    taught. Both differ from run to run, and with them the lengths: that changes no token of greedy or exact-match
    output, but it does change what rejection draws. Give `cost` for the same text there.
    """

    longest: int = 16
    cost: RoundCost | float | None = None
    experience: Experience = field(default_factory=lambda: Experience(Times([])), init=False, repr=False, compare=False)
    _schedule: Schedule | None = field(default=None, init=False, repr=False)  # None: nothing is known yet
    _before: Floats = field(default_factory=_none_judged, init=False, repr=False, compare=False)
    _told: Floats = field(default_factory=_none_judged, init=False, repr=False, compare=False)
    _seen: int = field(default=0, init=False, repr=False)
    _learn_at: int = field(default=0, init=False, repr=False)  # rounds
    _off: bool = field(default=False, init=False, repr=False)

    def starting_from(self, experience: Experience) -> Confident:
        """One for another sequence, which adds to the experience."""
        own = replace(self)
        own.experience, own._schedule = experience, experience.schedule
        own._off = own._schedule is not None and not own._schedule.longest
        own._before = experience.judged * min(1.0, PRIOR_WEIGHT / max(1.0, float(experience.judged.sum())))
        return own

    def next(self, stats: Stats) -> int:
        experience = self.experience
        if self._off and 0 < experience.idle < experience.probe_after:  # most rounds: nothing new to learn from
            experience.idle += 1
            return 0
        rounds = stats.rounds
        if self.cost is None and experience.times.plain_rounds < PLAIN_FIRST:
            return 0
        if rounds >= self._learn_at or (self._off and experience.idle == 0):
            self._learn(stats)
            self._learn_at = max(1, rounds + min(rounds, RELEARN_EVERY))  # after 1, 2, 4... rounds
        if not self._off:
            return self.longest
        probes = experience.idle >= experience.probe_after
        experience.idle = 0 if probes else experience.idle + 1
        return self.longest if probes else 0  # of which the schedule has the first made: more, where that is so sure

    def enough(self, confidences: Sequence[float]) -> bool:
        return self._schedule is not None and self._schedule.enough(confidences)

    def _learn(self, stats: Stats) -> None:
        """Makes the schedule anew where enough was judged since the last time: that takes a part of a millisecond."""
        seen = stats.judged.total()
        if self._schedule and seen == self._seen:
            return
        own, experience = table(stats.judged), self.experience
        experience.judge(own - self._told)
        self._told, self._seen = own, seen
        known = own + self._before
        if self._schedule:
            few = known.sum() / EVIDENCE
            if experience.unlearnt < max(1.0, min(few, PROBES) if self._off else few):
                return
        cost = self._cost()
        if cost is None:
            return
        judged, rate = Judged.of_table(known), experience.rate
        # Each time is one more turn towards the rate at which time is rightly priced; the first has two.
        if not rate:
            _, rate = schedule(cost, judged, self.longest, 1 / cost.seconds(0))
        self._schedule, experience.rate = schedule(cost, judged, self.longest, rate)
        experience.schedule, experience.unlearnt = self._schedule, 0.0
        self._off = not self._schedule.longest
        # The less is known, the sooner it is tried again: a wrong verdict grows unlikely fast. A try finds its graphs
        # cold, and so takes longer than a draft where drafting goes on.
        cold = self._cost(0.5) or cost
        extra = cold.seconds(min(1, cold.longest)) / cold.seconds(0) - 1
        experience.probe_after = int(extra * min(1 / PROBE_SHARE, experience.judged.sum() ** 2 / UNSURE))

    def _cost(self, quantile: float = 0.25) -> RoundCost | None:
        if isinstance(self.cost, RoundCost):
            return self.cost
        if self.cost is not None:
            return RoundCost.flat(self.cost, self.longest)
        return self.experience.times.cost(quantile)


Drafts: TypeAlias = int | Scheduled | Confident
"""Their number in a round, or a policy that stops drafting early."""


def schedule_of(tuned: Tuned) -> Schedule | None:
    return Schedule(tuned.schedule.shares, tuned.schedule.least) if tuned.schedule else None


def drafts_as_tuned(tuned: Tuned) -> Drafts:
    """What a bundle starts with."""
    table = schedule_of(tuned)
    return Scheduled(table) if table else tuned.drafts
