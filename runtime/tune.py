"""What a bundle should start with on a device: drafter, number of drafts or schedule, or off, and why.

The cost of a round is the device's (`RoundCost`), acceptance the bundle's: drafts are surveyed once, here, and each
choice is played on paper with that device's times: of each drafter that can be surveyed, each number of drafts, which
of a tree is that of its nodes. Domains weigh alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .benchmark import Opened, Task, measured_profile, open_cold, survey_all, weighed
from .cost import RoundCost, round_costs
from .draft_length import DraftLength, EarlyStop, Fixed, Never, Scheduled
from .errors import PocketdraftError
from .lengths import Progress
from .manifest import Manifest, Tuned, TunedSchedule, change
from .profile import Profile, files_digest
from .schedule import Judged, Schedule, best
from .survey import Surveyed, play

LEAST_GAIN = 1.02  # over plain decoding: less is within what a prediction errs
SCHEDULE_GAIN = 1.01  # over the best fixed length: less is not worth a rule
Texts = Mapping[str, Sequence[Surveyed]]  # by domain


@dataclass(frozen=True)
class Candidate:
    """One choice on paper. `drafts` of a tree are nodes. Gains are over plain decoding; `tokens` and `decodings` are of
    a round, means over domains: what it gives, and how many times as long as one of plain decoding it takes."""

    drafter: str
    drafts: int
    schedule: Schedule | None
    gain: float
    gains: dict[str, float]
    tokens: float
    decodings: float

    @property
    def name(self) -> str:
        count = f"{self.drafts} draft" + ("s" if self.drafts > 1 else "")
        how = f"up to {count}, by confidence" if self.schedule else count
        return f"{self.drafter}, {how}" if self.drafts else "off"


OFF = Candidate("none", 0, None, 1.0, {}, 1.0, 1.0)


@dataclass(frozen=True)
class Choice:
    """`chosen` is one of `candidates`, or off. `left_out` are drafters whose rounds the profile does not time."""

    chosen: Candidate
    reason: str
    candidates: tuple[Candidate, ...]
    left_out: tuple[str, ...] = ()

    @property
    def loses(self) -> dict[str, float]:
        """Domains where the choice is slower than plain decoding."""
        return {domain: gain for domain, gain in self.chosen.gains.items() if gain < 1}

    def tuned(self, device: str, profile_sha256: str) -> Tuned:
        found = self.chosen
        return Tuned(
            drafter=found.drafter,
            drafts=found.drafts,
            schedule=TunedSchedule(shares=found.schedule.shares, least=found.schedule.least)
            if found.schedule
            else None,
            gain=round(found.gain, 4),
            gains={domain: round(gain, 4) for domain, gain in found.gains.items()},
            reason=self.reason,
            device=device,
            profile_sha256=profile_sha256,
        )


def choose(texts: Mapping[str, Texts], costs: Mapping[str, RoundCost]) -> Choice:
    """By drafter: its surveyed texts, and what its rounds take."""
    found: list[Candidate] = []
    for drafter, by_domain in texts.items():
        cost = costs[drafter]
        found += [_candidate(drafter, n, None, by_domain, cost) for n in range(1, cost.longest + 1)]
        table = _schedule(by_domain, cost)
        if table and table.longest:
            found.append(_candidate(drafter, table.longest, table, by_domain, cost))
    fixed = max((one for one in found if not one.schedule), key=lambda one: one.gain)
    scheduled = max((one for one in found if one.schedule), key=lambda one: one.gain, default=fixed)
    top = scheduled if scheduled.gain > SCHEDULE_GAIN * fixed.gain else fixed
    if top.gain > LEAST_GAIN:
        return Choice(top, f"{_round_of(top)}: {top.gain:.2f} times plain decoding's speed", tuple(found))
    cost = costs[top.drafter]
    verify = cost.verify(top.drafts + 1) / cost.verify(1)
    reason = (
        f"even the best, {top.name}, would be {top.gain:.2f} times as fast as plain decoding: {_round_of(top)} "
        f"(verifying {top.drafts + 1} tokens alone takes {verify:.2f})"
    )
    return Choice(OFF, reason, tuple(found))


def tune(bundle: Path, task: Task, profile: Profile | None, advance: Progress) -> tuple[Choice, Profile]:
    """For a device, or for this one, which is measured then. Raises PocketdraftError for another bundle's profile."""
    opened = open_cold(bundle, task.threads, task.prompts[0])
    if profile and profile.bundle_sha256 not in ("", files_digest(opened.manifest)):
        raise PocketdraftError(
            f"The profile of {profile.device.name} is of a bundle {profile.bundle_sha256[:12]}, {bundle} is "
            f"{files_digest(opened.manifest)[:12]}; take it with this bundle."
        )
    profile = profile or measured_profile(opened, task, advance)
    choice = choose_for(opened, task, profile, advance)
    opened.engine.close()
    return choice, profile


def choose_for(opened: Opened, task: Task, profile: Profile, advance: Progress) -> Choice:
    """Of the drafters named, or all that can be surveyed, as far as the profile times their rounds.

    Raises PocketdraftError where it times those of none."""
    drafters = weighed(task, opened.manifest)
    costs = round_costs(profile, drafters)
    texts = {drafter: survey_all(opened, task, drafter, cost.longest, advance) for drafter, cost in costs.items()}
    return replace(choose(texts, costs), left_out=tuple(drafter for drafter in drafters if drafter not in costs))


def write_choice(bundle: Path, tuned: Tuned | None) -> Manifest:
    """Into the bundle's manifest. None takes a choice back."""
    return change(bundle, {"tuned": tuned})


def _candidate(drafter: str, drafts: int, table: Schedule | None, texts: Texts, cost: RoundCost) -> Candidate:
    policy: DraftLength = Scheduled(table) if table else Fixed(drafts)
    stop: EarlyStop | None = Scheduled(table) if table else None
    played = {domain: play(found, policy, cost, stop) for domain, found in texts.items()}
    decode = cost.seconds(0)
    slow = {domain: one.seconds / one.stats.emitted / decode for domain, one in played.items()}  # decodings a token
    rounds = [one.stats.rounds for one in played.values()]
    return Candidate(
        drafter,
        drafts,
        table,
        gain=len(slow) / sum(slow.values()),
        gains={domain: 1 / time for domain, time in slow.items()},
        tokens=sum(one.stats.emitted for one in played.values()) / sum(rounds),
        decodings=sum(one.seconds for one in played.values()) / decode / sum(rounds),
    )


def _schedule(texts: Texts, cost: RoundCost) -> Schedule | None:
    """From how sure drafts were, and rightly, in rounds of the longest length; None if the drafter does not tell."""
    every = [text for found in texts.values() for text in found]
    judged = play(every, Fixed(cost.longest), cost, Never()).stats.judged
    return best(cost, Judged.of(judged), cost.longest)[0] if judged else None


def _round_of(one: Candidate) -> str:
    return f"a round of {one.drafter} gives {one.tokens:.2f} tokens and takes {one.decodings:.2f} decodings"
