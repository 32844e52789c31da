"""LiteRT on the CPU. K/V lives in LiteRT's own buffers, each one input and output of every target graph.

One buffer serves as both because tfl.dynamic_update_slice then works in place, and the drafter's graph
reads the very same buffer: a round copies no K/V.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine import Arrays
from ..errors import PocketdraftError
from ..manifest import GraphSpec, Manifest, Part, TensorSpec

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

KVBuffers = dict[str, Any]  # tensor name -> TensorBuffer


class LiteRTEngine:
    """See `runtime.engine.Engine`. Not thread-safe; a session holds its own K/V, graphs are shared."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int) -> None:
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.cpu_options import CpuOptions
        from ai_edge_litert.environment import Environment
        from ai_edge_litert.options import Options

        self.manifest = manifest
        environment = Environment.create()
        options = Options(cpu_options=CpuOptions(num_threads=threads))
        self._models = {}
        for name, part in manifest.parts.items():
            try:
                data = _read_part(folder, part)
                self._models[name] = CompiledModel.from_buffer(data, environment=environment, options=options)
            except RuntimeError as error:
                raise PocketdraftError(f"LiteRT cannot open the {name} of {folder}: {error}; export again.") from error
        self._graphs = {graph.name: _Graph(self._models[graph.part], graph) for graph in manifest.graphs}

    def new_cache(self) -> KVBuffers:
        decode = self._graphs["decode"]
        cache = {}
        for tensor in decode.spec.inputs:
            if tensor.is_kv:
                cache[tensor.name] = decode.model.create_input_buffer_by_name("decode", tensor.name)
                cache[tensor.name].write(np.zeros(tensor.shape, tensor.dtype))
        return cache

    def run(self, graph: str, inputs: Arrays, cache: KVBuffers | None = None) -> dict[str, npt.NDArray[Any]]:
        return self._graphs[graph].run(inputs, cache or {})

    def read_kv(self, cache: KVBuffers) -> dict[str, npt.NDArray[np.float32]]:
        specs = {tensor.name: tensor for tensor in self._graphs["decode"].spec.inputs if tensor.is_kv}
        return {name: _read(buffer, specs[name]) for name, buffer in cache.items()}

    def close(self) -> None:
        self._graphs.clear()
        self._models.clear()


class _Graph:
    """One signature with its own small input and output buffers."""

    def __init__(self, model: Any, spec: GraphSpec) -> None:
        self.model, self.spec = model, spec
        self._kv_in = [t.name for t in spec.inputs if t.is_kv]
        self._kv_out = [t.name for t in spec.outputs if t.is_kv]
        self._inputs = {
            t.name: model.create_input_buffer_by_name(spec.name, t.name) for t in spec.inputs if not t.is_kv
        }
        self._outputs = [
            (t, model.create_output_buffer_by_name(spec.name, t.name)) for t in spec.outputs if not t.is_kv
        ]

    def run(self, inputs: Arrays, cache: KVBuffers) -> dict[str, npt.NDArray[Any]]:
        for name, buffer in self._inputs.items():
            buffer.write(inputs[name])
        feed = self._inputs | {name: cache[name] for name in self._kv_in}
        take = {t.name: buffer for t, buffer in self._outputs} | {name: cache[name] for name in self._kv_out}
        self.model.run_by_name(self.spec.name, feed, take)
        return {tensor.name: _read(buffer, tensor) for tensor, buffer in self._outputs}


def open_engine(folder: Path, manifest: Manifest, threads: int) -> LiteRTEngine:
    return LiteRTEngine(folder, manifest, threads)


def _read(buffer: Any, spec: TensorSpec) -> npt.NDArray[Any]:
    flat: npt.NDArray[Any] = buffer.read(int(np.prod(spec.shape)), np.dtype(spec.dtype))
    return flat.reshape(spec.shape)


def _read_part(folder: Path, part: Part) -> bytes:
    with (folder / part.file).open("rb") as file:
        file.seek(part.offset)
        return file.read(part.size)
