"""Who may run the engine's next round: the one place that schedules.

Graphs are not thread-safe, so one thread has them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

Deliver = Callable[[Any], None]  # takes a step's result, an exception, or None at the end


class Busy(Exception):
    """Nobody else may wait."""


@dataclass(eq=False)
class Job:
    """`work` takes a step each time it is asked, and is asked by the engine's thread only."""

    work: Iterator[Any]
    deliver: Deliver
    cancelled: bool = field(default=False, init=False)


class Turns:
    """Up to `at_once` jobs take turns, a step each; up to `waiting` more wait, in order."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._at_once, self._most_waiting = at_once, waiting
        self._waiting: deque[Job] = deque()
        self._running: deque[Job] = deque()
        self._changed = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Lets the step that runs be the last one."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join()

    def submit(self, work: Iterator[Any], deliver: Deliver) -> Job:
        """Raises Busy where too many wait."""
        job = Job(work, deliver)
        with self._changed:
            if len(self._running) + len(self._waiting) >= self._at_once + self._most_waiting:
                raise Busy
            self._waiting.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """No step of the job begins from now on. One that has ended is left alone."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)

    @property
    def unfinished(self) -> int:
        """Jobs that run or wait."""
        with self._changed:
            return len(self._running) + len(self._waiting)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            goes_on = not job.cancelled and self._step(job)
            with self._changed:
                self._running.remove(job)
                if goes_on:
                    self._running.append(job)
            if not goes_on and isinstance(job.work, Generator):
                job.work.close()

    def _next(self) -> Job | None:
        with self._changed:
            while not self._running and not self._waiting and not self._ending:
                self._changed.wait()
            if self._ending:
                return None
            while self._waiting and len(self._running) < self._at_once:
                self._running.append(self._waiting.popleft())
            return self._running[0]

    def _step(self, job: Job) -> bool:
        try:
            job.deliver(next(job.work))
            return True
        except StopIteration:
            job.deliver(None)
        except Exception as error:
            job.deliver(error)
        return False
