"""ExecuTorch's runtime. K/V are buffers of the loaded program, which all of its methods share.

A sequence therefore has a program of its own. One that is no longer needed serves the next sequence: what lies
beyond a sequence's committed length is never seen. ExecuTorch's Python binding speaks in torch tensors, so this
file, alone in the runtime, imports torch, and only when such a bundle is opened.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine import Arrays
from ..errors import PocketdraftError
from ..graphs import KV_MOVER, KV_READER
from ..manifest import Manifest


class KVProgram:
    """One sequence's K/V: a loaded program."""

    def __init__(self, program: Any) -> None:
        self.program = program


class ExecuTorchEngine:
    """See `runtime.engine.Engine`. Not thread-safe; the number of threads is one for the whole process."""

    takes_trees = True

    def __init__(self, folder: Path, manifest: Manifest, threads: int) -> None:
        import executorch.kernels.quantized  # noqa: F401 (registers the kernels of quantized embeddings)
        import torch
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        self.manifest = manifest
        self._torch, self._runtime = torch, Runtime.get()
        self._path = folder / manifest.parts["target"].file
        self._graphs = {graph.name: graph for graph in manifest.graphs}
        if threads:
            portable_lib._unsafe_reset_threadpool(threads)
        self._first = self._load()  # serves the embedders, and the first sequence
        self._idle = [self._first]
        self._rows = manifest.graphs_of("verify")[-1].width - 1

    def new_cache(self) -> KVProgram:
        cache = KVProgram(self._idle.pop() if self._idle else self._load())
        weakref.finalize(cache, self._idle.append, cache.program)
        return cache

    def fork(self, cache: KVProgram) -> None:
        """A program's buffers cannot be written from outside."""

    def compact(self, cache: KVProgram, sources: Sequence[int], start: int) -> None:
        places = list(range(start, start + len(sources)))
        # By a method of the program, which takes a fixed number: a row that is moved twice to one place is moved once.
        padding = self._rows - len(places)
        pairs = [*sources, *[sources[0]] * padding], [*places, *[start] * padding]
        given = [self._torch.tensor(one, dtype=self._torch.int64) for one in pairs]
        cache.program.load_method(KV_MOVER).execute(given)

    def run(self, graph: str, inputs: Arrays, cache: KVProgram | None = None) -> dict[str, npt.NDArray[Any]]:
        spec = self._graphs[graph]
        program = self._first if cache is None else cache.program
        # Copied: a mask of one row counts as contiguous with the negative stride that torch refuses.
        given = [np.array(inputs[t.name], order="C") for t in spec.inputs if not t.is_kv]
        made = program.load_method(spec.family).execute([self._torch.from_numpy(array) for array in given])
        wanted = (t.name for t in spec.outputs if not t.is_kv)
        return {name: tensor.numpy() for name, tensor in zip(wanted, made, strict=False)}

    def read_kv(self, cache: KVProgram) -> dict[str, npt.NDArray[np.float32]]:
        made = cache.program.load_method(KV_READER).execute([self._torch.zeros(1)])
        if len(made) < len(names := self.manifest.kv_tensors):
            raise PocketdraftError(f"{self._path} does not give the drafters' K/V to compare; export it again.")
        return {name: tensor.numpy() for name, tensor in zip(names, made, strict=True)}

    def close(self) -> None:
        self._idle.clear()
        self._first = None

    def _load(self) -> Any:
        try:
            program = self._runtime.load_program(self._path)
            for family in {graph.family for graph in self.manifest.graphs}:
                program.load_method(family)
        except RuntimeError as error:
            raise PocketdraftError(f"ExecuTorch cannot open {self._path}: {error}; export again.") from error
        return program


def open_engine(folder: Path, manifest: Manifest, threads: int) -> ExecuTorchEngine:
    return ExecuTorchEngine(folder, manifest, threads)
