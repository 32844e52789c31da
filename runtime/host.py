"""The machine that this process runs on: what it is, how fast it reads memory, how much of it was taken."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .profile import DeviceInfo

READ_BYTES = 256 << 20  # many times what caches hold
READS = 5


def describe() -> DeviceInfo:
    """By what the system tells. Its name on the network is nobody's business."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return DeviceInfo(
        name=f"{platform.system()} {platform.machine()}",
        soc=_processor() or None,
        os=f"{platform.system()} {platform.release()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        memory_bytes=pages if pages > 0 else None,
    )


def memory_bandwidth(threads: int) -> float:
    """Bytes/s of the fastest of a few passes over memory, 0 threads being all cores. Takes a quarter of a second."""
    threads = threads or os.cpu_count() or 1
    pieces = np.array_split(np.ones(READ_BYTES // 4, np.float32), threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:  # numpy lets go of the interpreter's lock
        for _ in range(READS):
            started = time.perf_counter()
            list(pool.map(np.max, pieces))
            best = min(best, time.perf_counter() - started)
    return READ_BYTES / best


def forget_peak() -> None:
    """From here on `peak_memory` tells of what comes, where the system can forget (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The most resident memory of this process in bytes, Python and all."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
