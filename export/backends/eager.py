"""Runs steps in torch as they are: the rung of the ladder between transformers and the lowered graphs.

It satisfies `runtime.engine.Engine`, so the loop, the tests and the ladder drive it like any backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pocketdraft.runtime.compaction import compact
from pocketdraft.runtime.manifest import Manifest

from ..step import DTYPES, Step

KV = dict[str, Tensor]


class EagerEngine:
    takes_trees = True

    def __init__(self, manifest: Manifest, steps: list[Step]) -> None:
        self.manifest = manifest
        self._steps = {step.spec.name: step for step in steps}

    def new_cache(self) -> KV:
        kept = {t.name: t for step in self._steps.values() for t in step.spec.inputs if t.is_kv}
        return {name: torch.zeros(t.shape, dtype=DTYPES[t.dtype]) for name, t in kept.items()}

    def fork(self, cache: KV) -> KV:
        return dict(cache)  # a call gives new tensors and leaves the old ones as they are

    def run(
        self, graph: str, inputs: Mapping[str, npt.NDArray[Any]], cache: KV | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        step, kv = self._steps[graph], cache or {}
        feed = {t.name: kv[t.name] if t.is_kv else torch.from_numpy(np.array(inputs[t.name])) for t in step.spec.inputs}
        with torch.no_grad():
            outputs = step.module(**feed)
        kv.update((t.name, outputs[t.name]) for t in step.spec.outputs if t.is_kv)
        return {t.name: outputs[t.name].numpy() for t in step.spec.outputs if not t.is_kv}

    def compact(self, cache: KV, sources: Sequence[int], start: int) -> None:
        names = (tensor.name for tensor in self.manifest.target_kv)
        arrays = {name: cache[name].numpy().copy() for name in names}  # copies: forks share tensors
        compact(arrays, sources, start)
        cache.update((name, torch.from_numpy(array)) for name, array in arrays.items())

    def read_kv(self, cache: KV) -> dict[str, npt.NDArray[np.float32]]:
        return {name: tensor.numpy().copy() for name, tensor in cache.items()}

    def close(self) -> None:
        self._steps.clear()
