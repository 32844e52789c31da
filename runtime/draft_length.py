"""How many drafts the next round asks for, and when its drafter has made enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

from .clock import now
from .cost import RoundCost, Times
from .experience import NO_PROMPT, Experience, Learnt, Vector, counted, none_judged
from .manifest import Tuned
from .schedule import Floats, Judged, Schedule, schedule
from .stats import Stats

TRY_ROUNDS = 6  # a try: its first round finds its graphs cold, and one draft says little
TRY_SHARE = 0.005  # of the time: where drafting does not pay, a try now and then tells whether it does by now
FEW = 8.0  # drafts: with less judged, it is tried at once
UNSURE = 2.0  # or, while n drafts were judged, this over the square of n
DOUBT = 0.02  # over drafts judged, or rounds timed: the square of how much slower drafting may seem, and yet go on
PLAIN_FIRST = 4  # rounds: nothing that comes after would tell what not drafting takes, and so whether it is better
PLAIN_KNOWN = 30  # and until so many were timed, the first TRY_ROUNDS of each sequence
RELEARN_EVERY = 64  # rounds, at the most, after which the schedule is made anew
PRIOR_WEIGHT = 64.0  # drafts, for as many as other sequences' count at the most
EVIDENCE = 4.0  # and where a quarter as many drafts were judged since as it was made of, or so many, or a try was over
LEARN_SHARE = 0.01  # of the time, that making schedules takes at the most once so many drafts were judged


class DraftLength(Protocol):
    def begin(self, tokens: Sequence[int]) -> None:
        """The next rounds go on from these, the whole sequence so far. Not called: nothing is known of it."""

    def next(self, stats: Stats) -> int: ...


class EarlyStop(Protocol):
    def enough(self, confidences: Sequence[float]) -> bool:
        """Whether to stop at the drafts made so far, given how sure the drafter is of each."""


class Never:
    """An early stop that asks how sure the drafter is, and lets it go on."""

    def enough(self, confidences: Sequence[float]) -> bool:
        return False


@dataclass(frozen=True)
class Fixed:
    drafts: int

    def begin(self, tokens: Sequence[int]) -> None:
        pass

    def next(self, stats: Stats) -> int:
        return self.drafts


@dataclass(frozen=True)
class Scheduled:
    """Stops by a table made beforehand, as `pocketdraft tune` does. Nothing in it depends on what things take now."""

    schedule: Schedule

    def begin(self, tokens: Sequence[int]) -> None:
        pass

    def next(self, stats: Stats) -> int:
        return self.schedule.longest

    def enough(self, confidences: Sequence[float]) -> bool:
        return self.schedule.enough(confidences)


@dataclass
class Confident:
    """Stops drafting where more drafts would gain less than their time is worth, by what was accepted so far.

    That is `schedule.py`'s rule, of shares that are learnt from the drafts that the target has looked at. Where even
    the first draft does not pay it is left out, but for a few rounds in many, or nothing would be learnt any more.

    `cost` is what rounds take, or a draft's time over a verify's if that is the same whatever its width. Such a policy
    starts anew with each sequence. None is what the target measures, and then it starts from what other sequences
    taught, above all those whose prompts are alike. Both differ from run to run, and with them the lengths: that
    changes no token of greedy or exact-match output, but it does change what rejection draws. Give `cost` for the same
    text there.
    """

    longest: int = 16
    cost: RoundCost | float | None = None
    experience: Experience = field(default_factory=lambda: Experience(Times([])), init=False, repr=False, compare=False)
    _own: Learnt = field(default_factory=Learnt, init=False, repr=False, compare=False)
    _prompt: Vector = field(default_factory=lambda: NO_PROMPT, init=False, repr=False, compare=False)
    _before: Floats = field(default_factory=none_judged, init=False, repr=False, compare=False)
    _schedule: Schedule | None = field(default=None, init=False, repr=False)  # None: nothing is known yet
    _known: float = field(default=0.0, init=False, repr=False)  # drafts judged, other sequences' by their weight
    _seen: int = field(default=0, init=False, repr=False)
    _learnt: int = field(default=0, init=False, repr=False)  # what was seen when the schedule was made
    _learn_at: int = field(default=0, init=False, repr=False)  # rounds
    _learnt_s: float = field(default=0.0, init=False, repr=False)  # of rounds, by then
    _making_s: float = field(default=0.0, init=False, repr=False)  # that it took
    _off: bool = field(default=False, init=False, repr=False)
    _refused: int = field(default=0, init=False, repr=False)
    _try_after: int = field(default=0, init=False, repr=False)  # rounds without a draft

    def starting_from(self, experience: Experience) -> Confident:
        """One for another sequence: it adds to the experience, and from its `begin` on takes what is there."""
        own = replace(self)
        own.experience = experience
        return own

    def begin(self, tokens: Sequence[int]) -> None:
        """Starts from a schedule of its own, made of what texts with prompts like `tokens` taught."""
        self._prompt = counted(tokens)
        before = self.experience.of(self._prompt, self._own)
        drafts = float(before.sum())
        self._before = before * min(1.0, PRIOR_WEIGHT / max(1.0, drafts))
        self._known = drafts + self._seen
        if drafts:
            self._reschedule()

    def next(self, stats: Stats) -> int:
        experience = self.experience
        if self._off and 0 < experience.idle < self._try_after:  # most rounds: nothing new to learn from
            experience.idle += 1
            return 0
        rounds = stats.rounds
        if self.cost is None and experience.times.plain_rounds < (PLAIN_KNOWN if rounds < TRY_ROUNDS else PLAIN_FIRST):
            return 0
        lucky = False
        if experience.idle == 0 if self._off else rounds >= self._learn_at:
            lucky = self._none_refused(stats)
            self._learn(stats)
            self._learn_at = max(1, rounds + min(rounds, RELEARN_EVERY))  # after 1, 2, 4... rounds
        if not self._off:
            return self.longest
        if lucky or experience.idle >= self._try_after:  # a try goes on for as long as it is lucky
            experience.idle = -TRY_ROUNDS
        experience.idle += 1
        return self.longest if experience.idle <= 0 else 0

    def enough(self, confidences: Sequence[float]) -> bool:
        schedule = self._schedule
        # Of a try's rounds every other one makes two drafts, to know what more take, or more if these are so sure.
        if self._off and len(confidences) < 2 - self.experience.idle % 2:
            return False
        return schedule is not None and schedule.enough(confidences)

    def _none_refused(self, stats: Stats) -> bool:
        """Of the drafts judged since it last learnt; not so if there are none."""
        refused = sum(drafts for (_, right), drafts in stats.judged.items() if not right)
        before, self._refused = self._refused, refused
        return refused == before and stats.judged.total() > self._seen

    def _learn(self, stats: Stats) -> None:
        """Makes the schedule anew where enough was judged since the last time: that takes a part of a millisecond."""
        seen = stats.judged.total()
        if self._schedule and seen == self._seen:
            return
        if seen and not self._seen:
            self._own.counts = stats.judged
            self.experience.sequences.append((self._own, self._prompt))
        self._known += seen - self._seen
        self._seen = seen
        enough = min(self._known / EVIDENCE, PRIOR_WEIGHT)
        if self._off:
            enough = min(enough, TRY_ROUNDS)
        if not self._schedule or (seen - self._learnt >= max(1.0, enough) and self._affords(stats)):
            self._learnt_s = stats.total_s
            self._reschedule()

    def _affords(self, stats: Stats) -> bool:
        """Whether rounds took long enough since the schedule was made for making one to be a small part of it."""
        if self.cost is not None or self._known < PRIOR_WEIGHT:
            return True
        return LEARN_SHARE * (stats.total_s - self._learnt_s) >= self._making_s

    def _reschedule(self) -> None:
        started, cost, experience = now(), self._cost(), self.experience
        if cost is None:
            return
        judged = Judged.of_table(self._own.judged() + self._before)
        # Little judged or timed, and a little slower than plain decoding: that is no verdict.
        known = self._known if self.cost is not None else min(self._known, experience.times.drafted_rounds)
        slow = (1 - math.sqrt(DOUBT / max(1.0, known))) / cost.seconds(0)
        # Each time is one more turn towards the rate at which time is rightly priced; the first has two.
        rate = experience.rate or schedule(cost, judged, self.longest, slow)[1]
        found, better = schedule(cost, judged, self.longest, rate)
        if rate > slow and not found.longest:  # at a price of better days, or of plain decoding
            found, better = schedule(cost, judged, self.longest, slow)
        self._schedule, experience.rate, self._learnt = found, better, self._seen
        self._off = not found.longest
        if self._off:
            # A try finds its graphs cold, and so takes longer than a draft where drafting goes on.
            cold = self._cost(0.5) or cost
            extra = cold.seconds(min(2, cold.longest)) / cold.seconds(0) - 1
            # The less is known, the sooner drafting is tried again: a wrong verdict grows unlikely fast.
            patience = TRY_ROUNDS * min(1 / TRY_SHARE, self._known**2 / UNSURE) if self._known >= FEW else 0
            self._try_after = int(extra * patience)
        self._making_s = now() - started

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
