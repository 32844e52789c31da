"""When to stop drafting, by how sure the drafter is: the best rule for a device, and what it gives.

A draft counts if all before it do. The chance of that, `reached`, is the product over the drafts made of the share
that was accepted at their confidence, by tenths of it. A rule stops, with k drafts made, where `reached` lies below
a least value for k. The best values come from optimal stopping: with a token worth 1 and time priced at `rate` tokens
a second, what going on from k is worth is

    W(k, reached) = max(0, sum over tenths t of p[t] (reached a[t] + W(k + 1, reached a[t])) - rate * time(k -> k + 1))

where p[t] is how often a draft has the tenth t, and a[t] the share of those that is accepted. At the rate that the
rule itself gives, a round of it is worth nothing: 1 + W(0, 1) = rate * time(0 drafts). W(0, 1) = 0 is "off".
time(k -> k + 1) is a draft, and on top of it what a wider verify takes longer where k + 1 needs one: as graphs have
few widths, several drafts may have to pay together for a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .cost import RoundCost
from .stats import TENTHS, confidence_tenth

PRIOR_DRAFTS = 2.0  # how many drafts the supposed shares count for, until there are real ones
STEP, STEPS = 0.08, 48  # of log(reached): down to 0.02
REACHED = np.exp(-STEP * np.arange(STEPS))
Floats = npt.NDArray[np.float64]
# As five drafters of the embedded target were right: a third of the time even where two tokens are as likely.
SUPPOSED = np.array([*(0.3 + 0.07 * (tenth + 0.5) for tenth in range(10)), 1.0])


@dataclass(frozen=True)
class Schedule:
    """`shares[t]` of drafts with the tenth t of confidence are accepted; stop at k drafts where reached < `least[k]`.

    `least` has an entry for each number of drafts that may be asked for once more: 0 to longest - 1. The first is at
    most 1 where drafting pays at all. A fixed table: what it makes of a text does not depend on times.
    """

    shares: tuple[float, ...]
    least: tuple[float, ...]

    @property
    def longest(self) -> int:
        """0 where drafting does not pay."""
        return len(self.least) if self.least and self.least[0] <= 1 else 0

    def enough(self, confidences: Sequence[float]) -> bool:
        """Whether to stop at the drafts made so far, given how sure the drafter is of each."""
        if len(confidences) >= len(self.least):
            return True
        reached = 1.0
        for confidence in confidences:  # without a generator: this comes after each draft
            reached *= self.shares[confidence_tenth(confidence)]
        return reached < self.least[len(confidences)]


def table(counts: Mapping[tuple[int, bool], int]) -> Floats:
    """`Stats.judged` as float64 [11, 2]: refused, accepted."""
    found = np.zeros((TENTHS, 2))
    for (tenth, accepted), drafts in counts.items():
        found[tenth, int(accepted)] = drafts
    return found


@dataclass(frozen=True)
class Judged:
    """How often drafts had each tenth of confidence, and were accepted: float64 [11] each."""

    frequencies: Floats
    shares: Floats

    @staticmethod
    def of(counts: Mapping[tuple[int, bool], int]) -> Judged:
        """From `Stats.judged`, and a few drafts as sure as they should be. Without any, all are supposed to be sure."""
        return Judged.of_table(table(counts))

    @staticmethod
    def of_table(counts: Floats) -> Judged:
        """[11, 2]: refused, accepted."""
        accepted, seen = counts[:, 1], counts.sum(1)
        # As much more or less sure than it should be at a tenth as it is over all.
        honesty = (accepted.sum() + PRIOR_DRAFTS) / (seen @ SUPPOSED + PRIOR_DRAFTS)
        shares = (accepted + PRIOR_DRAFTS * np.minimum(SUPPOSED * honesty, 1)) / (seen + PRIOR_DRAFTS)
        if not seen.any():
            seen = np.eye(TENTHS)[-1]
        return Judged(seen / seen.sum(), shares)

    @cached_property
    def moves(self) -> Floats:
        """[STEPS, STEPS]: from each step of log(reached), the row, where one more draft leads; or out of sight."""
        steps = np.log(np.maximum(self.shares, 1e-9)) / -STEP
        near = np.minimum(steps, STEPS).astype(np.intp)
        beyond = np.minimum(steps - near, 1) * self.frequencies  # shared out between the two steps around
        further = np.zeros(2 * STEPS + 1)  # by how many steps, from 1 - STEPS on; each row is a window of it
        further[STEPS - 1 :] = np.bincount(near, self.frequencies - beyond, STEPS + 2)
        further[STEPS:] += np.bincount(near, beyond, STEPS + 1)
        return np.lib.stride_tricks.sliding_window_view(further, STEPS)[STEPS - 1 :: -1]


def schedule(cost: RoundCost, judged: Judged, longest: int, rate: float) -> tuple[Schedule, float]:
    """The best one where time is priced at `rate`, and tokens per unit of time of a round of it.

    That is a better price: a few turns reach the one where both are the same (Dinkelbach's method), see `best`.
    """
    seconds = [cost.seconds(drafts) for drafts in range(min(longest, cost.longest) + 1)]
    least = [math.inf] * (len(seconds) - 1)
    ahead, one_more = np.zeros((STEPS, 2)), np.empty((STEPS, 2))  # tokens that going on gives, and its time
    one_more[:, 0] = REACHED * (judged.frequencies @ judged.shares)
    for drafts in reversed(range(len(least))):
        one_more[:, 1] = seconds[drafts + 1] - seconds[drafts]
        ahead = judged.moves @ ahead
        ahead += one_more
        count = int(np.count_nonzero(ahead @ (1.0, -rate) > 0))  # the likeliest: what is less likely is worth less
        ahead[count:] = 0.0
        if count:
            least[drafts] = math.exp(-STEP * (count - 0.5))
    tokens, time = ahead[0].tolist()
    return Schedule(tuple(judged.shares.tolist()), tuple(least)), (1 + tokens) / (seconds[0] + time)


def best(cost: RoundCost, judged: Judged, longest: int) -> tuple[Schedule, float]:
    """The schedule with the most tokens per unit of time, and those: plain decoding's where it is off."""
    rate = 1 / cost.seconds(0)
    while True:
        found, better = schedule(cost, judged, longest, rate)
        if better <= rate * (1 + 1e-9):
            return found, rate
        rate = better
