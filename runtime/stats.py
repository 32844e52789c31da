"""What happened in the rounds, and the identities that must hold between the counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .accept import Verdict
from .context import Emitted
from .proposal import Proposal


@dataclass
class Stats:
    """Counts of tokens unless said otherwise.

    Every round ends with one token of the target's own: `corrected` where a draft was refused, `bonus` where
    all were accepted (or none was proposed). `cut` is what a stop token or the budget took away again.
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
    accepted_at: Counter[int] = field(default_factory=Counter)

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

    def check(self) -> None:
        """Raises AssertionError where the counts contradict each other."""
        assert self.corrected + self.bonus == self.rounds
        assert self.accepted + self.rounds == self.emitted + self.cut
        assert self.accepted <= self.proposed
        assert sum(self.accepted_at.values()) == self.accepted

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
        }
