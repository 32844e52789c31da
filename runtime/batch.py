"""Several requests at once: rows that join and leave between rounds.

The exported graphs have batch 1, so rows run in turn, one round each: a batch shares graphs and time, and makes none
of its rows faster. What a row gives is what it gives alone, as its K/V, noise and statistics are its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .cache import Cache
from .context import Emitted
from .draft_length import Drafts
from .errors import PocketdraftError
from .manifest import Manifest
from .sampler import GREEDY, Sampler
from .session import Session, open_session
from .target import Target


@dataclass(frozen=True)
class Request:
    """See `open_session`. `budget` is in tokens; `stop` tokens come on top of the bundle's."""

    prompt: Sequence[int]
    budget: int
    sampler: Sampler = GREEDY
    drafter: str = "mtp"
    drafts: Drafts = 4
    stop: Sequence[int] = ()


@dataclass(eq=False)
class Row:
    """A request under way. It has K/V from the first of its rounds to the last; tokens and statistics stay."""

    request: Request
    session: Session = field(repr=False)

    @property
    def tokens(self) -> list[int]:
        """What it has given so far."""
        return self.session.context.tokens[len(self.request.prompt) :]


class Batch:
    """As many rows at once as `memory_bytes` has K/V for; others wait, first come, first served. Not thread-safe."""

    def __init__(self, target: Target, memory_bytes: int) -> None:
        manifest = target.engine.manifest
        self.target = target
        self.rows = memory_bytes // row_bytes(manifest)
        if self.rows < 1:
            raise PocketdraftError(
                f"A row takes {row_bytes(manifest)} bytes, mostly K/V, and {memory_bytes} are allowed; "
                "allow more, or export with a smaller --context."
            )
        self._waiting: deque[Row] = deque()
        self._running: deque[Row] = deque()  # the one whose turn it is first
        self._free: list[Any] = []  # K/V of rows that have left

    def __len__(self) -> int:
        """Rows that run or wait."""
        return len(self._running) + len(self._waiting)

    def join(self, request: Request) -> Row:
        """Takes a request. Raises PocketdraftError for one that cannot be served."""
        cache = Cache(None, self.target.context_length)
        session = open_session(
            self.target.engine, request.drafter, request.drafts, self.target, request.sampler, cache, request.stop
        )
        session.check(request.prompt, request.budget)
        row = Row(request, session)
        self._waiting.append(row)
        return row

    def leave(self, row: Row) -> None:
        """The row gets no further rounds; nothing happens to one that has left already."""
        for rows in (self._waiting, self._running):
            if row in rows:
                rows.remove(row)
                self._release(row)

    def step(self) -> tuple[Row, Emitted]:
        """One round of the row whose turn it is, which leaves with its last. Only while there are rows.

        A row whose round raises leaves too, and the others are as they were.
        """
        while self._waiting and len(self._running) < self.rows:
            self._running.append(self._waiting.popleft())
        row = self._running[0]
        try:
            if row.session.cache.handle is None:
                row.session.cache.handle = self._free.pop() if self._free else self.target.engine.new_cache()
                row.session.begin(row.request.prompt, row.request.budget)
            emitted = row.session.round()
        except BaseException:
            self.leave(row)
            raise
        self._running.rotate(-1)
        if emitted.finish is not None:
            self.leave(row)
        return row, emitted

    def run(self) -> Iterator[tuple[Row, Emitted]]:
        """All rounds of all rows, those included that join meanwhile."""
        while len(self):
            yield self.step()

    def _release(self, row: Row) -> None:
        """What the K/V hold is of no matter to the next row: it sees no slot that it has not written."""
        if row.session.cache.handle is not None:
            self._free.append(row.session.cache.handle)
            row.session.cache.handle = None


def row_bytes(manifest: Manifest) -> int:
    """Memory of one row: its K/V, and in ExecuTorch, whose K/V lie within a program, that program as well."""
    program = manifest.parts["target"].size if manifest.backend == "executorch" else 0
    return manifest.kv_bytes + program
