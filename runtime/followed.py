"""Calls of a drafter's graphs that keep K/V of what the target has committed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .graphs import GraphSpec

Rows = npt.NDArray[Any]


def calls(
    graphs: Sequence[GraphSpec], start: int, rows: Sequence[Rows], capacity: int
) -> Iterator[tuple[GraphSpec, int, int, list[Rows]]]:
    """Cuts rows [T, ...] of the positions from `start` on into calls: graph, first position, how many rows are real,
    and the rows [1, width, ...], zeros after the real ones.

    `graphs` are narrowest first, the first of width 1. Each call takes the narrowest that holds all that is left, else
    the widest, of those that do not reach past `capacity`.
    """
    done, count = 0, len(rows[0])
    while done < count:
        left, room = count - done, capacity - start - done
        fitting = [graph for graph in graphs if graph.width <= room]
        graph = next((graph for graph in fitting if graph.width >= left), fitting[-1])
        real = min(left, graph.width)
        cut = []
        for array in rows:
            padded = np.zeros((1, graph.width, *array.shape[1:]), array.dtype)
            padded[0, :real] = array[done : done + real]
            cut.append(padded)
        yield graph, start + done, real, cut
        done += real
