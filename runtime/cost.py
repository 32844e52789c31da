"""The cost model: what a round gives, over what it takes on one device.

    tokens/s of n drafts = (1 + c1 + c1 c2 + ... + c1 c2 ... cn) / (verify(n + 1) + n drafts + host)

where ck is the chance that draft k is accepted if all before it were, and verify(T) the narrowest graph that takes T
tokens: decoding for T = 1. Every round ends with one token of the target's own, which is the 1. Leviathan et al.
(arXiv 2211.17192, theorem 3.8) have the case where all ck are the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .errors import PocketdraftError
from .profile import EMBEDDERS, DraftingTiming, GraphTiming, HostTiming, Profile

GRAPHLESS = ("none", "prompt_lookup")  # drafters that run no graph
REPEATED = 3  # rounds, or a number of drafts tells less than others: the first time, graphs may still be prepared
SOON_DRAFTED, SOON_PLAIN = 5, 12  # rounds: so many are timed after each change, about as many tokens
REMEMBERED_ROUNDS = 32  # a device gets warm and slower: only the last few rounds tell what it does now


@dataclass(frozen=True)
class RoundCost:
    """Seconds, or any other unit, of what a round is made of.

    `verify_s` is by width, narrowest first; the first is decoding, width 1. `draft_s` is one draft, its argmax and its
    row of the verify included, `drafting_s` comes once where the drafter is called, `round_s` is the loop's own work.
    """

    verify_s: tuple[tuple[int, float], ...]
    draft_s: float
    round_s: float = 0.0
    drafting_s: float = 0.0

    @property
    def longest(self) -> int:
        """The most drafts that a graph is wide enough for."""
        return self.verify_s[-1][0] - 1

    def verify(self, width: int) -> float:
        """Of the narrowest graph that takes so many tokens. Raises ValueError where none does."""
        for wide, seconds in self.verify_s:
            if wide >= width:
                return seconds
        raise ValueError(f"a verify of {width} tokens, where the widest graph takes {self.longest + 1}")

    def seconds(self, nodes: int, calls: int | None = None) -> float:
        """A round that verifies so many drafts. A tree takes fewer `calls` of the drafter than it has nodes: one for
        each node with children; a chain takes one for each draft."""
        calls = nodes if calls is None else calls
        drafting = self.drafting_s if calls else 0.0
        return self.verify(nodes + 1) + calls * self.draft_s + drafting + self.round_s

    @staticmethod
    def flat(draft: float, longest: int = 64) -> RoundCost:
        """Of a device where a verify takes 1, whatever its width, and a draft `draft`."""
        return RoundCost(((1, 1.0), (longest + 1, 1.0)), draft)

    @staticmethod
    def of(profile: Profile, drafter: str = "mtp", filled: int | None = None) -> RoundCost:
        """What a profile says of a drafter's rounds. `filled` is the context fill, between those that were timed.

        Raises PocketdraftError for a profile that does not tell of them.
        """
        return round_costs(profile, (drafter,), filled)[drafter]


def round_costs(profile: Profile, drafters: Sequence[str], filled: int | None = None) -> dict[str, RoundCost]:
    """By drafter, as far as the profile tells of its rounds. Raises PocketdraftError where it tells of none."""
    found = {name: cost for name in drafters if (cost := _round_cost(profile, name, filled))}
    if not found:
        raise PocketdraftError(
            f"The profile of {profile.device.name} ({profile.origin}) does not time the rounds of "
            f"{', '.join(drafters)}; take one on the device with `pocketdraft profile BUNDLE`."
        )
    return found


def _round_cost(profile: Profile, drafter: str, filled: int | None) -> RoundCost | None:
    host = profile.host or HostTiming(round_s=0.0)
    lookup_s = host.lookup_share * sum(_by_width(profile, role, None).get(1, 0.0) for role in EMBEDDERS)
    drafting = profile.drafters.get(drafter) or _of_graphs(profile, drafter, host, lookup_s, filled)
    decode = _by_width(profile, "decode", filled)
    verify = _by_width(profile, drafting.verify, filled) if drafting else {}
    if drafting is None or not decode or not verify:
        return None
    by_width = tuple(sorted({**verify, **decode}.items()))
    return RoundCost(by_width, drafting.draft_s, host.round_s + lookup_s, drafting.drafting_s)


def _of_graphs(
    profile: Profile, drafter: str, host: HostTiming, lookup_s: float, filled: int | None
) -> DraftingTiming | None:
    """Of a drafter that runs one graph a draft, or none, where its rounds were not timed as a whole.

    Each draft looks up two embeddings, its call's and its row's of the verify; one that no graph made, only that.
    """
    draft = _by_width(profile, "draft", filled).get(1)
    if drafter == "mtp" and draft:
        return DraftingTiming(drafting_s=host.drafting_s, draft_s=draft + host.draft_s + 2 * lookup_s)
    if drafter in GRAPHLESS:
        return DraftingTiming(drafting_s=0.0, draft_s=host.draft_s + lookup_s)
    return None


class SequenceTimes:
    """Adds the rounds of one sequence, after its prompt, to `times`: those soon after it began to draft, or ceased to.

    A graph that is used again and again gets faster, by a third within ten rounds where its weights fit into the
    caches. So drafting and decoding are compared as fast as they are after about as many tokens.
    """

    def __init__(self, times: Times) -> None:
        self._times = times
        self._drafted: bool | None = None
        self._alike = 0  # rounds before this one that drafted as this one did, or did not

    def add(self, width: int, verify_s: float, drafts: int, draft_s: float, host_s: float) -> None:
        """See `Times.add`."""
        drafted = drafts > 0
        self._alike = self._alike + 1 if drafted == self._drafted else 0
        self._drafted = drafted
        soon = SOON_DRAFTED if drafted else SOON_PLAIN
        if 0 < self._alike <= soon or self._times.hardly_knows(width):
            self._times.add(width, verify_s, drafts, draft_s, host_s)


class Times:
    """What the parts of rounds took lately, for all sessions of one target: a property of the device, not of a text."""

    def __init__(self, widths: Sequence[int]) -> None:
        """`widths` of decoding and the verify graphs."""
        self._verify: dict[int, deque[float]] = {width: deque(maxlen=REMEMBERED_ROUNDS) for width in sorted(widths)}
        self._drafting: dict[int, deque[float]] = {}  # by number of drafts
        self._host: deque[float] = deque(maxlen=REMEMBERED_ROUNDS)
        self.drafted_rounds = 0  # all of them, and not only those remembered

    def add(self, width: int, verify_s: float, drafts: int, draft_s: float, host_s: float) -> None:
        """One round, that verified with the graph of this width."""
        self._verify[width].append(verify_s)
        self._host.append(host_s)
        if drafts:
            self.drafted_rounds += 1
            self._drafting.setdefault(drafts, deque(maxlen=REMEMBERED_ROUNDS)).append(draft_s)

    def hardly_knows(self, width: int) -> bool:
        """Whether it has run so few times that any round of it tells something."""
        return len(self._verify[width]) < REPEATED

    @property
    def plain_rounds(self) -> int:
        """Of those remembered, the ones that verified no draft."""
        return len(next(iter(self._verify.values()), ()))

    def cost(self, quantile: float = 0.25) -> RoundCost | None:
        """A lower quartile: a graph that has not run for a while finds its weights out of the caches, and is slower
        than if it were used all along. The median tells what it takes as it is used. A width that has hardly run lies
        between those beside it. Rounds of the fewest and the most drafts tell what comes once, and not with each draft;
        if they are as many, nothing does. None until a draft was timed."""
        ran = [width for width, times in self._verify.items() if times]
        if not ran or not self._drafting:
            return None
        known = {
            width: _ranked(self._verify[width], quantile)
            for width in ran
            if width in (ran[0], ran[-1]) or not self.hardly_knows(width)
        }
        verify = np.interp(list(self._verify), list(known), list(known.values()))
        drafting = {n: times for n, times in self._drafting.items() if len(times) >= REPEATED} or self._drafting
        few, many = min(drafting), max(drafting)
        least = _ranked(drafting[few], quantile)
        each = least / few
        if many > few:
            each = min(each, max(0.0, (_ranked(drafting[many], quantile) - least) / (many - few)))
        return RoundCost(
            tuple(zip(self._verify, verify.tolist(), strict=True)),
            each,
            _ranked(self._host, quantile),
            least - few * each,
        )


def _ranked(times: Sequence[float], quantile: float) -> float:
    return sorted(times)[int(len(times) * quantile)]


def expected_tokens(chances: Sequence[float], drafts: int | None = None) -> float:
    """Tokens of a round of so many drafts in a chain, the target's own included.

    `chances` are conditional, by position. Beyond the last one, drafts are taken to have its chance: so many were
    never proposed. Raises ValueError where nothing is known of a draft.
    """
    drafts = len(chances) if drafts is None else drafts
    if drafts and not chances:
        raise ValueError(f"{drafts} drafts, and no chance that any is accepted")
    total, reached = 1.0, 1.0
    for position in range(drafts):
        reached *= chances[min(position, len(chances) - 1)]
        total += reached
    return total


def expected_tokens_of_tree(parents: Sequence[int], chances: Sequence[float]) -> float:
    """Tokens of a round whose proposal is a tree: node i hangs on `parents[i]` (-1: the pending token), and has
    `chances[i]` to be the target's token if its parent is. Chances of one node's children must not sum to more
    than 1: at most one of them is taken."""
    sums: dict[int, float] = {}
    reached: list[float] = []
    for node, (parent, chance) in enumerate(zip(parents, chances, strict=True)):
        if not -1 <= parent < node:
            raise ValueError(f"node {node} hangs on {parent}, which does not come before it")
        sums[parent] = sums.get(parent, 0.0) + chance
        if sums[parent] > 1 + 1e-9:
            raise ValueError(f"the children of {parent} have chances that sum to {sums[parent]:.3f}")
        reached.append(chance * (1.0 if parent < 0 else reached[parent]))
    return 1.0 + math.fsum(reached)


def tokens_per_s(cost: RoundCost, chances: Sequence[float], drafts: int) -> float:
    """Of rounds of so many drafts; 0 is plain decoding, which is the same whatever the chances."""
    return expected_tokens(chances, drafts) / cost.seconds(drafts)


def best_length(cost: RoundCost, chances: Sequence[float]) -> tuple[int, float]:
    """The fixed number of drafts with the most tokens/s, and those. The fewer of equals: 0 is off."""
    speeds = [tokens_per_s(cost, chances, drafts) for drafts in range(cost.longest + 1)]
    best = max(range(len(speeds)), key=lambda drafts: speeds[drafts])
    return best, speeds[best]


def _by_width(profile: Profile, role: str, filled: int | None) -> dict[int, float]:
    """Median seconds by width, at a context fill; None takes the fullest that was timed."""
    timings: dict[int, list[GraphTiming]] = {}
    for timing in profile.graphs:
        if timing.role == role:
            timings.setdefault(timing.width, []).append(timing)
    return {width: _at(sorted(found, key=lambda one: one.filled), filled) for width, found in timings.items()}


def _at(timings: Sequence[GraphTiming], filled: int | None) -> float:
    """Between two fills in proportion, beyond them the nearest."""
    if filled is None:
        return timings[-1].median_s
    for before, after in pairwise(timings):
        if before.filled <= filled < after.filled:
            share = (filled - before.filled) / (after.filled - before.filled)
            return before.median_s + share * (after.median_s - before.median_s)
    return timings[0].median_s if filled < timings[0].filled else timings[-1].median_s
