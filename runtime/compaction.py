"""Moves the K/V rows of a tree's accepted nodes to where a chain would have written them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

SLOT_AXES = {"kv_cache_k": 2, "kv_cache_v": 3}  # of K [1, H, S, D] and V [1, H, D, S]


def compact(tensors: Mapping[str, npt.NDArray[Any]], sources: Sequence[int], start: int) -> None:
    """In place, by tensor name and of any dtype; see `runtime.engine.Engine.compact`.

    Nothing is recomputed: a row depends on its token, its position and what it saw, never on its slot. All rows are
    read before any is written, so that a source may be another one's destination.
    """
    for name, tensor in tensors.items():
        rows = np.moveaxis(tensor, SLOT_AXES[name.rpartition("_")[0]], 0)  # [S, 1, H, D], a view
        slots = np.arange(start, start + len(sources))
        rows[slots % len(rows)] = rows[np.asarray(sources) % len(rows)]
