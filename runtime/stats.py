"""What happened in the rounds, and the identities that must hold between the counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .accept import Verdict
from .clock import now
from .context import Emitted
from .proposal import Proposal

RoundPart = Literal["draft", "verify", "sampling", "host"]
TENTHS = 11  # of confidence: 0 to 9, and 10 for certainty itself


def confidence_tenth(confidence: float) -> int:
    """0 to 10; the last is for certainty itself."""
    return int(confidence * 10)


@dataclass
class Stats:
    """What the rounds gave, in tokens; the counts are derived from one table of outcomes.

    Every round ends with one token of the target's own: `corrected` where a draft was refused, `bonus` where
    all were accepted (or none was proposed). `cut` is what a stop token or the budget took away again, after
    `accepted` had counted it. `judged` are the drafts that the target looked at, where their drafter told how sure
    it was: by tenths of that, those accepted and those not. `seconds` is time within rounds: drafting, verifying,
    choosing the target's tokens and accepting drafts, and the rest of the loop.

    Of a tree all nodes are proposed, and positions are depths. `depth` is that of its deepest node, `reach` that of
    the deepest one at or below where the target's tokens left it: none was refused there if they went as far.
    """

    outcomes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (proposed, accepted) -> rounds
    # Those of them whose proposal branched: (proposed, accepted, depth, reach) -> rounds
    trees: Counter[tuple[int, int, int, int]] = field(default_factory=Counter)
    judged: Counter[tuple[int, bool]] = field(default_factory=Counter)  # (tenth of confidence, accepted) -> drafts
    emitted: int = 0
    cut: int = 0
    seconds: dict[RoundPart, float] = field(default_factory=lambda: dict.fromkeys(get_args(RoundPart), 0.0))

    def stopwatch(self) -> Callable[[RoundPart], float]:
        """Gives `lap(part)`, which adds the time since the lap before to that part, and tells it."""
        last = now()

        def lap(part: RoundPart) -> float:
            nonlocal last
            at = now()
            taken, last = at - last, at
            self.seconds[part] += taken
            return taken

        return lap

    def add(self, other: Stats) -> None:
        """The rounds of another sequence, or of the same one later on."""
        self.outcomes.update(other.outcomes)
        self.trees.update(other.trees)
        self.judged.update(other.judged)
        self.emitted += other.emitted
        self.cut += other.cut
        for part, seconds in other.seconds.items():
            self.seconds[part] += seconds

    def record(self, proposal: Proposal, verdict: Verdict, emitted: Emitted) -> None:
        count = len(verdict.accepted)
        self.outcomes[len(proposal), count] += 1
        self.emitted += len(emitted.tokens)
        self.cut += count + 1 - len(emitted.tokens)
        if not proposal.is_chain:
            self.trees[len(proposal), count, proposal.reach(-1), proposal.reach(verdict.rows[-1] - 1)] += 1
        if not proposal.confidences:
            return
        # They are those of the first nodes, a chain: the accepted path may leave it.
        stood = count if proposal.is_chain else sum(row == index for index, row in enumerate(verdict.rows)) - 1
        self.judged.update(zip(map(confidence_tenth, proposal.confidences), (True,) * stood + (False,), strict=False))

    @property
    def rounds(self) -> int:
        return self.outcomes.total()

    @property
    def proposed(self) -> int:
        return sum(proposed * rounds for (proposed, _), rounds in self.outcomes.items())

    @property
    def accepted(self) -> int:
        return sum(accepted * rounds for (_, accepted), rounds in self.outcomes.items())

    @property
    def corrected(self) -> int:
        return self._count(lambda depth, reach, accepted: accepted < reach)

    @property
    def bonus(self) -> int:
        return self.rounds - self.corrected

    @property
    def drafted_rounds(self) -> int:
        """Those that proposed something."""
        return sum(rounds for (proposed, _), rounds in self.outcomes.items() if proposed)

    @property
    def accepted_per_round(self) -> float:
        """Mean over the rounds that proposed something; the target's own token is not counted."""
        drafted = self.drafted_rounds
        return self.accepted / drafted if drafted else 0.0

    @property
    def total_s(self) -> float:
        """Seconds of the rounds, the prompt's prefill left out."""
        return sum(self.seconds.values())

    @property
    def tokens_per_s(self) -> float:
        """Emitted tokens over the time of the rounds."""
        return self.emitted / self.total_s if self.total_s else 0.0

    def acceptance_by_position(self) -> list[float]:
        """Of the rounds that proposed a draft k, the share that accepted it, and so all before it."""
        return [
            self._count(lambda depth, reach, accepted, k=k: accepted > k)
            / self._count(lambda depth, reach, accepted, k=k: depth > k)
            for k in range(self._deepest)
        ]

    def conditional_acceptance_by_position(self) -> list[float]:
        """Of the rounds that accepted all drafts before a proposed draft k, the share that accepted it too."""
        reached = [
            self._count(lambda depth, reach, accepted, k=k: reach > k and accepted >= k) for k in range(self._deepest)
        ]
        return [
            self._count(lambda depth, reach, accepted, k=k: accepted > k) / count
            for k, count in enumerate(reached)
            if count
        ]

    def check(self) -> None:
        """Raises AssertionError where the counts contradict each other."""
        assert all(accepted <= proposed for proposed, accepted in self.outcomes)
        assert all(accepted <= reach <= depth <= proposed for proposed, accepted, depth, reach in self.trees)
        assert all(rounds >= 0 for rounds in self._paths().values())
        assert self.accepted + self.rounds == self.emitted + self.cut

    def to_json(self) -> dict[str, Any]:
        counts = ("rounds", "proposed", "accepted", "corrected", "bonus", "emitted", "cut")
        return {name: getattr(self, name) for name in counts} | {
            "accepted_per_round": round(self.accepted_per_round, 4),
            "acceptance_by_position": [round(share, 4) for share in self.acceptance_by_position()],
            "conditional_acceptance_by_position": [
                round(share, 4) for share in self.conditional_acceptance_by_position()
            ],
            "seconds": {part: round(seconds, 6) for part, seconds in self.seconds.items()},
        }

    @property
    def _deepest(self) -> int:
        return max((depth for depth, _, _ in self._paths()), default=0)

    def _count(self, holds: Callable[..., bool]) -> int:
        return sum(rounds for path, rounds in self._paths().items() if holds(*path))

    def _paths(self) -> Counter[tuple[int, int, int]]:
        """(depth, reach, accepted) -> rounds; of a chain, depth and reach are its length."""
        chains, paths = self.outcomes.copy(), Counter[tuple[int, int, int]]()
        for (proposed, accepted, depth, reach), rounds in self.trees.items():
            chains[proposed, accepted] -= rounds
            paths[depth, reach, accepted] += rounds
        for (proposed, accepted), rounds in chains.items():
            if rounds:
                paths[proposed, proposed, accepted] += rounds
        return paths
