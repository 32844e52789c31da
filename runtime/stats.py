"""What happened in the rounds, and the identities that must hold between the counts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from .accept import Verdict
from .context import Emitted
from .proposal import Proposal

RoundPart = Literal["draft", "verify", "host"]


@dataclass
class Stats:
    """Counts of tokens unless said otherwise.

    Every round ends with one token of the target's own: `corrected` where a draft was refused, `bonus` where
    all were accepted (or none was proposed). `cut` is what a stop token or the budget took away again, after
    `accepted` had counted it. `seconds` is time within rounds: drafting, verifying, and the rest of the loop.
    """

    rounds: int = 0
    drafted_rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    corrected: int = 0
    bonus: int = 0
    emitted: int = 0
    cut: int = 0
    proposed_at: Counter[int] = field(default_factory=Counter)
    reached_at: Counter[int] = field(default_factory=Counter)  # proposed, and all drafts before it accepted
    accepted_at: Counter[int] = field(default_factory=Counter)
    seconds: dict[RoundPart, float] = field(default_factory=lambda: {"draft": 0.0, "verify": 0.0, "host": 0.0})

    def stopwatch(self) -> Callable[[RoundPart], None]:
        """Gives `lap(part)`, which adds the time since the lap before to that part."""
        last = time.perf_counter()

        def lap(part: RoundPart) -> None:
            nonlocal last
            now = time.perf_counter()
            self.seconds[part] += now - last
            last = now

        return lap

    def record(self, proposal: Proposal, verdict: Verdict) -> None:
        count = len(verdict.accepted)
        self.rounds += 1
        self.drafted_rounds += bool(proposal)
        self.proposed += len(proposal)
        self.accepted += count
        refused = count < len(proposal)
        self.corrected += refused
        self.bonus += not refused
        self.proposed_at.update(range(len(proposal)))
        self.reached_at.update(range(count + refused))
        self.accepted_at.update(range(count))

    def record_emitted(self, verdict: Verdict, emitted: Emitted) -> None:
        self.emitted += len(emitted.tokens)
        self.cut += len(verdict.accepted) + 1 - len(emitted.tokens)

    @property
    def accepted_per_round(self) -> float:
        """Mean over the rounds that proposed something; the target's own token is not counted."""
        return self.accepted / self.drafted_rounds if self.drafted_rounds else 0.0

    def acceptance_by_position(self) -> list[float]:
        """Of the rounds that proposed a draft k, the share that accepted it, and so all before it."""
        return [self.accepted_at[k] / self.proposed_at[k] for k in sorted(self.proposed_at)]

    def conditional_acceptance_by_position(self) -> list[float]:
        """Of the rounds that accepted all drafts before a proposed draft k, the share that accepted it too."""
        return [self.accepted_at[k] / self.reached_at[k] for k in sorted(self.reached_at)]

    def check(self) -> None:
        """Raises AssertionError where the counts contradict each other."""
        assert self.corrected + self.bonus == self.rounds
        assert self.accepted + self.rounds == self.emitted + self.cut
        assert self.accepted <= self.proposed
        assert sum(self.accepted_at.values()) == self.accepted
        assert sum(self.reached_at.values()) == self.accepted + self.corrected  # a refusal is seen once a round
        assert all(self.accepted_at[k] <= self.reached_at[k] <= self.proposed_at[k] for k in self.proposed_at)

    def to_json(self) -> dict[str, Any]:
        return {
            "rounds": self.rounds,
            "proposed": self.proposed,
            "accepted": self.accepted,
            "corrected": self.corrected,
            "bonus": self.bonus,
            "emitted": self.emitted,
            "cut": self.cut,
            "accepted_per_round": round(self.accepted_per_round, 4),
            "acceptance_by_position": [round(share, 4) for share in self.acceptance_by_position()],
            "conditional_acceptance_by_position": [
                round(share, 4) for share in self.conditional_acceptance_by_position()
            ],
            "seconds": {part: round(seconds, 6) for part, seconds in self.seconds.items()},
        }
