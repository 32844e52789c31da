"""What a backend must do: run a named graph. Everything else of the loop is the same for all of them.

An engine is any object with these members: the LiteRT one is `engines/litert.py`, the torch one that the
parity ladder uses is `export/backends/eager.py`, and the tests have a scripted one.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .manifest import Manifest, open_bundle

Arrays = Mapping[str, npt.NDArray[Any]]


class Engine(Protocol):
    """Runs the graphs of one bundle and owns their KV buffers, which never pass through Python."""

    manifest: Manifest
    takes_trees: bool
    """Whether it has `compact`. An engine without it verifies chains only."""

    def new_cache(self) -> Any:
        """Zeroed K/V of one sequence, in the backend's own memory; opaque to the caller."""

    def fork(self, cache: Any) -> Any | None:
        """A copy of one sequence's K/V, in the backend's own memory too; None where the backend cannot copy them."""

    def run(self, graph: str, inputs: Arrays, cache: Any = None) -> dict[str, npt.NDArray[Any]]:
        """Runs one graph. `inputs` and the result hold everything but K/V.

        A target graph writes its K/V rows at `input_pos` into `cache`; the drafter only reads it.
        The arrays returned are the caller's to keep; those given must not be changed afterwards.
        """

    def compact(self, cache: Any, sources: Sequence[int], start: int) -> None:
        """Moves the K/V rows of the slots `sources`, ascending, to `start` and the slots after it, in every layer.

        Takes as long as those rows, whatever the cache holds. `start` comes before the first of `sources`. Slots
        are counted as positions are: a ring takes them modulo its size.
        """

    def read_kv(self, cache: Any) -> dict[str, npt.NDArray[np.float32]]:
        """Copies all K/V out, drafters' own too, by tensor name; for the parity ladder, never within a round."""

    def close(self) -> None: ...


class Delegating:
    """Does what another engine does: for those that change or note some of it."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.manifest, self.takes_trees = engine, engine.manifest, engine.takes_trees

    def new_cache(self) -> Any:
        return self.engine.new_cache()

    def fork(self, cache: Any) -> Any | None:
        return self.engine.fork(cache)

    def run(self, graph: str, inputs: Arrays, cache: Any = None) -> dict[str, npt.NDArray[Any]]:
        return self.engine.run(graph, inputs, cache)

    def compact(self, cache: Any, sources: Sequence[int], start: int) -> None:
        self.engine.compact(cache, sources, start)

    def read_kv(self, cache: Any) -> dict[str, npt.NDArray[np.float32]]:
        return self.engine.read_kv(cache)

    def close(self) -> None:
        self.engine.close()


def open_engine(folder: Path, threads: int = 0) -> Engine:
    """Verifies the bundle and opens it with the engine file that bears its backend's name.

    `threads` 0 leaves the number to the backend. Raises PocketdraftError.
    """
    manifest = open_bundle(folder)
    module = importlib.import_module(f".engines.{manifest.backend}", __package__)
    engine: Engine = module.open_engine(folder, manifest, threads)
    return engine
