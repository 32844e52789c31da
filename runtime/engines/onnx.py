"""ONNX Runtime on the CPU. K/V lives in the runtime's own buffers, each bound as input and as output.

The graphs scatter new rows into K/V; with one buffer on both sides that happens in place, and the drafter's
graph is bound to the very same buffers: a round copies no K/V.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..compaction import compact
from ..engine import Arrays
from ..errors import PocketdraftError
from ..graphs import GraphSpec
from ..manifest import Manifest


@dataclass
class KVValues:
    """K/V of one sequence as OrtValues by tensor name, and the binding of each family that has run on it."""

    by_name: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]  # their memory
    bound: dict[str, Any] = field(default_factory=dict)


class ONNXEngine:
    """See `runtime.engine.Engine`. One session a family, whatever the width; not thread-safe."""

    takes_trees = True

    def __init__(self, folder: Path, manifest: Manifest, threads: int) -> None:
        import onnxruntime

        self.manifest = manifest
        self._runtime = onnxruntime
        self._target_kv = [tensor.name for tensor in manifest.target_kv]
        self._graphs = {graph.name: graph for graph in manifest.graphs}
        self._families = {name: graph.family for name, graph in self._graphs.items()}
        self._returned = {
            name: {t.name: graph.returned(t) for t in graph.outputs} for name, graph in self._graphs.items()
        }
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._sessions = {}
        for family in sorted(set(self._families.values())):
            path = folder / f"{family}.onnx"
            try:
                self._sessions[family] = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime has a class for each status, without a common one
                raise PocketdraftError(f"ONNX Runtime cannot open {path}: {error}; export again.") from error
        self._no_kv = KVValues({}, {})  # for the embedders

    def new_cache(self) -> KVValues:
        return self._values({name: np.zeros(t.shape, t.dtype) for name, (t, _) in self.manifest.kv_tensors.items()})

    def fork(self, cache: KVValues) -> KVValues:
        return self._values({name: array.copy() for name, array in cache.arrays.items()})

    def run(self, graph: str, inputs: Arrays, cache: KVValues | None = None) -> dict[str, npt.NDArray[Any]]:
        spec, kv = self._graphs[graph], self._no_kv if cache is None else cache
        family = self._families[graph]
        binding = kv.bound.get(family)
        if binding is None:
            binding = kv.bound[family] = self._bind(spec, kv)
        # Bound by address: the arrays must live until the run is over.
        given = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in given.items():
            binding.bind_cpu_input(name, array)
        made = {t.name: np.empty(t.shape, t.dtype) for t in spec.outputs if not t.is_kv}
        for name, array in made.items():
            binding.bind_output(self._returned[graph][name], "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._sessions[family].run_with_iobinding(binding)
        return made

    def compact(self, cache: KVValues, sources: Sequence[int], start: int) -> None:
        compact({name: cache.arrays[name] for name in self._target_kv}, sources, start)

    def read_kv(self, cache: KVValues) -> dict[str, npt.NDArray[np.float32]]:
        return {name: array.copy() for name, array in cache.arrays.items()}

    def close(self) -> None:
        self._sessions.clear()
        self._no_kv.bound.clear()

    def _values(self, arrays: dict[str, npt.NDArray[Any]]) -> KVValues:
        """Backed by the arrays themselves."""
        values = {name: self._runtime.OrtValue.ortvalue_from_numpy(one) for name, one in arrays.items()}
        return KVValues(values, arrays)

    def _bind(self, spec: GraphSpec, kv: KVValues) -> Any:
        binding = self._sessions[self._families[spec.name]].io_binding()
        for tensor in spec.inputs:
            if tensor.is_kv:
                binding.bind_ortvalue_input(tensor.name, kv.by_name[tensor.name])
        for tensor in spec.outputs:
            if tensor.is_kv:
                binding.bind_ortvalue_output(spec.returned(tensor), kv.by_name[tensor.name])
        return binding


def open_engine(folder: Path, manifest: Manifest, threads: int) -> ONNXEngine:
    return ONNXEngine(folder, manifest, threads)
