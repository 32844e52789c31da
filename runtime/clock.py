"""Time as the rounds are measured by: the wall's, or the processor's.

Users wait by the wall's clock. On a machine that does other work beside, the processor time of the thread that decodes
is the steadier measure: it leaves out what other programs took, though not that they emptied the caches.
"""

from __future__ import annotations

import time
from typing import Literal

Clock = Literal["wall", "cpu"]
_NOW = {"wall": time.perf_counter, "cpu": time.thread_time}
_chosen: Clock = "wall"


def use(clock: Clock) -> None:
    """For the rest of the process. The processor's counts this thread only: graphs must run with one."""
    global _chosen
    _chosen = clock


def chosen() -> Clock:
    return _chosen


def now() -> float:
    """Seconds since some start."""
    return _NOW[_chosen]()
