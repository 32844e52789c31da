"""LiteRT on the CPU, where a GPU's graphs run too.

K/V lives in LiteRT's own buffers, each one input and output of every target graph.

One buffer serves as both because tfl.dynamic_update_slice then works in place, and the drafter's graph
reads the very same buffer: a round copies no K/V.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import huge_pages
from ..compaction import compact
from ..engine import Arrays
from ..errors import PocketdraftError
from ..graphs import SLOTS_NAME, GraphSpec
from ..litert_memory import view
from ..manifest import Manifest, Part


@dataclass
class KVBuffers:
    """K/V of one sequence by tensor name, and the lists of buffers' capsules of each graph that has run on it."""

    by_name: dict[str, Any]
    bound: dict[str, tuple[list[Any], list[Any]]] = field(default_factory=dict)
    views: dict[str, npt.NDArray[Any]] = field(default_factory=dict)  # of the target's, once a tree was verified


class LiteRTEngine:
    """See `runtime.engine.Engine`. Not thread-safe; a session holds its own K/V, graphs are shared."""

    takes_trees = True

    def __init__(self, folder: Path, manifest: Manifest, threads: int) -> None:
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.cpu_options import CpuOptions
        from ai_edge_litert.environment import Environment
        from ai_edge_litert.options import Options

        self.manifest, self._kv = manifest, manifest.kv_tensors
        self._no_kv = KVBuffers({})  # for the embedders
        environment = Environment.create()
        self._models = {}
        # Weights that XNNPACK has packed are shared by all signatures of a part through a file, which is mapped at
        # once and whose name can go; the same in memory (":memory") is read 5 % slower. It aborts on a full disk.
        with tempfile.TemporaryDirectory(prefix="pocketdraft-") as packed:
            for name, part in manifest.parts.items():
                roomy = shutil.disk_usage(packed).free > 2 * part.size
                cache = f"{packed}/{name}" if roomy else ":memory"
                cpu = CpuOptions(num_threads=threads, xnnpack_weight_cache_path=cache)
                options = Options(cpu_options=cpu)
                try:
                    data = _read_part(folder, part)
                    self._models[name] = CompiledModel.from_buffer(data, environment=environment, options=options)
                except RuntimeError as error:
                    raise PocketdraftError(
                        f"LiteRT cannot open the {name} of {folder}: {error}; export again."
                    ) from error
            huge_pages.move(Path(packed))
        self._graphs = {graph.name: _Graph(self._models[graph.part], graph) for graph in manifest.graphs}

    def new_cache(self) -> KVBuffers:
        return self._buffers({name: np.zeros(t.shape, t.dtype) for name, (t, _) in self._kv.items()})

    def fork(self, cache: KVBuffers) -> KVBuffers:
        return self._buffers(self._views(cache))

    def run(self, graph: str, inputs: Arrays, cache: KVBuffers | None = None) -> dict[str, npt.NDArray[Any]]:
        return self._graphs[graph].run(inputs, self._no_kv if cache is None else cache)

    def compact(self, cache: KVBuffers, sources: Sequence[int], start: int) -> None:
        if not cache.views:
            views = self._views(cache)
            cache.views = {tensor.name: views[tensor.name] for tensor in self.manifest.target_kv}
        compact(cache.views, sources, start)

    def read_kv(self, cache: KVBuffers) -> dict[str, npt.NDArray[np.float32]]:
        return {name: array.copy() for name, array in self._views(cache).items()}

    def _views(self, cache: KVBuffers) -> dict[str, npt.NDArray[Any]]:
        return {name: view(buffer, self._kv[name][0]) for name, buffer in cache.by_name.items()}

    def _buffers(self, arrays: Arrays) -> KVBuffers:
        """New ones, with a copy of the arrays."""
        made = {}
        for name, array in arrays.items():
            graph = self._kv[name][1]
            made[name] = self._models[graph.part].create_input_buffer_by_name(graph.name, name)
            made[name].write(array)
        return KVBuffers(made)

    def close(self) -> None:
        self._graphs.clear()
        self._models.clear()


class _Graph:
    """One signature with its own small input and output buffers."""

    def __init__(self, model: Any, spec: GraphSpec) -> None:
        self.spec, self._index = spec, model.get_signature_index(spec.name)
        # What `run_by_index` calls once it has asked each buffer for its capsule, 1 % of a decoding at 47 M.
        self.call = model._model.RunByIndex
        # LiteRT's own order, which is not the order of the steps.
        signature = model.get_signature_list()[spec.name]
        self._order = signature["inputs"], signature["outputs"]
        self._inputs = {
            t.name: model.create_input_buffer_by_name(spec.name, t.name) for t in spec.inputs if not t.is_kv
        }
        self._outputs = {
            t.name: model.create_output_buffer_by_name(spec.name, t.name) for t in spec.outputs if not t.is_kv
        }
        self._given = {t.name: view(self._inputs[t.name], t) for t in spec.inputs if not t.is_kv}
        self._made = {t.name: view(self._outputs[t.name], t) for t in spec.outputs if not t.is_kv}

    def run(self, inputs: Arrays, cache: KVBuffers) -> dict[str, npt.NDArray[Any]]:
        if SLOTS_NAME in self._inputs:
            inputs = {**inputs, SLOTS_NAME: self._slots(int(inputs["input_pos"][0]))}
        for name, array in self._given.items():
            array[...] = inputs[name]
        bound = cache.bound.get(self.spec.name)
        if bound is None:
            bound = cache.bound[self.spec.name] = self._bind(cache)
        self.call(self._index, *bound)
        return {name: array.copy() for name, array in self._made.items()}

    def _slots(self, start: int) -> npt.NDArray[np.int32]:
        """The slots that a call may touch, as LiteRT-LM writes them."""
        end = start + self.spec.width
        return np.array([[[[start, end, end, 0, 0, 0, 0]]]], np.int32)

    def _bind(self, cache: KVBuffers) -> tuple[list[Any], list[Any]]:
        inputs, outputs = self._inputs | cache.by_name, self._outputs | cache.by_name
        return [inputs[name].capsule for name in self._order[0]], [outputs[name].capsule for name in self._order[1]]


def open_engine(folder: Path, manifest: Manifest, threads: int) -> LiteRTEngine:
    return LiteRTEngine(folder, manifest, threads)


def _read_part(folder: Path, part: Part) -> bytes:
    with (folder / part.file).open("rb") as file:
        file.seek(part.offset)
        return file.read(part.size)
