"""Randomness without state: every draw is a pure function of the seed and of what is drawn where.

So the same seed gives the same text, rows of a batch do not depend on each other, and a refused draft leaves nothing
to be rolled back. The hash is splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014),
nested: each key is one output of the generator that the key before it starts. 64-bit integers that wrap, and shifts:
any language gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float64]

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
WORD = (1 << 64) - 1


class Lane(IntEnum):
    """What a draw is for. Draws of different lanes are independent at the same position; see `accept.py`."""

    TARGET = 0
    DRAFT = 1
    ACCEPT = 2
    CHILD = 3


@dataclass(frozen=True)
class Noise:
    """`position` is the index in the sequence, prompt included, of the token that is drawn."""

    seed: int

    def child(self, number: int) -> Noise:
        """Another source, independent of this one and of its other children."""
        return Noise(_output(_output(self.seed, Lane.CHILD), number))

    def uniform(self, lane: Lane, position: int) -> float:
        """Between 0 and 1, neither included: 52 random bits and a half, which a double holds exactly."""
        return ((_output(self._key(lane, position), 0) >> 12) + 0.5) * 2.0**-52

    def uniforms(self, lane: Lane, position: int, tokens: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """One for each token id, [N]: the id's own, whatever else is in the list."""
        key, golden = np.uint64(self._key(lane, position)), np.uint64(GOLDEN)
        state = (tokens.astype(np.uint64) + np.uint64(1)) * golden + key
        state = (state ^ (state >> np.uint64(30))) * np.uint64(FIRST)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(SECOND)
        return (((state ^ (state >> np.uint64(31))) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def gumbel(self, lane: Lane, position: int, tokens: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """Gumbel noise of each token id, [N]."""
        noise: npt.NDArray[np.float64] = -np.log(-np.log(self.uniforms(lane, position, tokens)))
        return noise

    def draw(self, weights: Probabilities, lane: Lane, position: int) -> int:
        """A token drawn in proportion to `weights` [V], which need not sum to 1.

        It is the argmax of log(weights) + Gumbel noise. That is the argmin of -log(uniform) / weight, which takes
        one logarithm a token where the other takes three. Two distributions drawn with the same noise give the same
        token as often as they allow: between (1 - TV) / (1 + TV) and 1 - TV of the time.
        """
        tokens, arrivals = self._race(weights, lane, position)
        return int(tokens[arrivals.argmin()])

    def ranking(self, weights: Probabilities, lane: Lane, position: int, count: int) -> list[int]:
        """What `draw` gives, then what it would give without that, and so on: at most `count` tokens."""
        tokens, arrivals = self._race(weights, lane, position)
        return [int(tokens[index]) for index in largest(-arrivals, count)]

    def _race(
        self, weights: Probabilities, lane: Lane, position: int
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """The tokens that can be drawn, and when each arrives: the first is drawn."""
        tokens = np.flatnonzero(weights > 0)
        return tokens, -np.log(self.uniforms(lane, position, tokens)) / weights[tokens]

    def _key(self, lane: Lane, position: int) -> int:
        return _output(_output(self.seed, lane), position)


def largest(scores: npt.NDArray[np.floating[Any]], count: int) -> list[int]:
    """Where the `count` largest of `scores` [N] are, in order, the lower of equals first; never those of -inf.

    For a few: each takes one argmax, which is many times faster than a partition.
    """
    rest, found = scores.copy(), list[int]()
    for _ in range(min(count, len(rest))):
        best = int(rest.argmax())
        if rest[best] == -np.inf:
            break
        found.append(best)
        rest[best] = -np.inf
    return found


def _output(state: int, index: int) -> int:
    """The output number `index` of the splitmix64 generator that starts at `state`."""
    state = (state + GOLDEN * (index + 1)) & WORD
    state = ((state ^ (state >> 30)) * FIRST) & WORD
    state = ((state ^ (state >> 27)) * SECOND) & WORD
    return state ^ (state >> 31)
