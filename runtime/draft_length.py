"""How many drafts the next round asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .stats import Stats


class DraftLength(Protocol):
    def next(self, stats: Stats) -> int: ...


@dataclass(frozen=True)
class Fixed:
    drafts: int

    def next(self, stats: Stats) -> int:
        return self.drafts
