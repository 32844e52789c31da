"""How much of a sequence's K/V is committed. The K/V itself stays in the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Cache:
    """`length` slots are committed; whatever lies beyond is scratch that later calls overwrite.

    `written` is the furthest that any call has reached since the cache was empty, padding and refused drafts included.
    `drafters` says, by kind, of which positions a drafter's own K/V are there.
    """

    handle: Any
    capacity: int
    length: int = 0
    written: int = 0
    drafters: Mapping[str, range] = field(default_factory=dict)

    @property
    def room(self) -> int:
        return self.capacity - self.length

    def advance(self, slots: int) -> None:
        """Commits so many, the first of what the last call wrote."""
        if slots > self.room:
            raise AssertionError(f"{slots} slots committed where {self.room} were free")
        self.length += slots

    def followed(self, drafter: str) -> range:
        """The positions of which this drafter's own K/V are there, none of them after the committed ones."""
        return self.drafters.get(drafter, range(0))

    def follow(self, drafter: str, positions: range) -> None:
        """This drafter's own K/V of these positions were written. Where they leave a gap, what was before is lost."""
        known = self.followed(drafter)
        start = known.start if known.start <= positions.start <= known.stop else positions.start
        self.drafters = {**self.drafters, drafter: range(start, positions.stop)}

    def truncate(self, length: int) -> None:
        """Takes back what lies beyond `length`, which must not lie before the last call's second slot.

        What a sliding layer's ring held before may be gone: see `Target.rewind`.
        """
        self.length = min(self.length, length)
        if self.drafters:
            self.drafters = {
                name: range(min(k.start, length), min(k.stop, length)) for name, k in self.drafters.items()
            }
