"""What the sequences of one target have taught, weighted by how alike their prompts are: similar prompts behave alike.

Apps send the same template again and again, and what one answer taught tells more of the next than other texts do.
Likeness is the cosine of both prompts' token counts. It decides how much earlier drafts weigh, and nothing else.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .cost import Times
from .schedule import Floats, table
from .stats import TENTHS

REMEMBERED = 32  # sequences
BUCKETS = 1024  # that tokens are counted in
STRANGE, ALIKE = 0.1, 0.3  # cosines: of texts of different languages, and from which on drafts count in full
UNLIKE = 0.1  # as much others count where none is alike: a prompt that is like no other starts from all of them
ENOUGH = 16.0  # drafts in texts that are alike, and others do not count
EACH = 32.0  # drafts of one sequence count at the most: a text is like itself, and the next may be otherwise
Vector = npt.NDArray[np.float32]


def none_judged() -> Floats:
    return np.zeros((TENTHS, 2))


@dataclass
class Learnt:
    """From one sequence, as it goes: nobody tells when it is over. `counts` are its `Stats.judged`."""

    counts: Counter[tuple[int, bool]] = field(default_factory=Counter)
    _told: int = 0
    _judged: Floats = field(default_factory=none_judged)

    def judged(self) -> Floats:
        """[11, 2], see `schedule.table`."""
        drafts = self.counts.total()
        if drafts != self._told:
            self._told, self._judged = drafts, table(self.counts)
        return self._judged


@dataclass
class Experience:
    """`times` are what rounds take. `idle` counts rounds without a draft where drafting does not pay; from a negative
    number up to 0 it is being tried. `rate` is that at which the last schedule priced time. `sequences`, oldest first,
    are those that had drafts judged, with their prompts."""

    times: Times
    idle: int = 0
    rate: float = 0.0
    sequences: deque[tuple[Learnt, Vector]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def of(self, prompt: Vector, own: Learnt) -> Floats:
        """Drafts judged in other sequences than `own`, weighted by likeness: [11, 2]."""
        others = [one for one in self.sequences if one[0] is not own]
        if not others:
            return none_judged()
        likeness = _likeness(prompt, np.array([other for _, other in others]))
        judged = np.array([learnt.judged() for learnt, _ in others])
        drafts = judged.sum((1, 2))
        counted_in = np.minimum(drafts, EACH)
        missing = max(0.0, 1 - float(likeness @ counted_in) / ENOUGH)
        weights = np.maximum(likeness, UNLIKE * missing) * counted_in / drafts
        weighted: Floats = np.tensordot(weights, judged, 1)
        return weighted


def _likeness(prompt: Vector, others: Vector) -> Floats:
    """[N], 0 to 1; no prompt is like all."""
    if not prompt.any():
        return np.ones(len(others))
    cosines: Floats = (others @ prompt).astype(np.float64)
    return np.clip((cosines - STRANGE) / (ALIKE - STRANGE), 0.0, 1.0)


def counted(tokens: Sequence[int]) -> Vector:
    """[BUCKETS], of length 1: roots of how often tokens come, so that the most frequent ones do not drown the rest."""
    roots = np.sqrt(np.bincount(np.asarray(tokens, np.int64) % BUCKETS, minlength=BUCKETS))
    return (roots / max(1.0, float(np.linalg.norm(roots)))).astype(np.float32)


NO_PROMPT = counted(())
