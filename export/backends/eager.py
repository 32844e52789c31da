"""Runs steps in torch as they are: the rung of the ladder between transformers and the lowered graphs.

It satisfies `runtime.engine.Engine`, so the loop, the tests and the ladder drive it like any backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pocketdraft.quantize.weights import round_trip
from pocketdraft.runtime.manifest import Manifest

from ..plan import Recipes
from ..step import Step, all_weights

KV = dict[str, Tensor]


class EagerEngine:
    def __init__(self, manifest: Manifest, steps: list[Step]) -> None:
        self.manifest = manifest
        self._steps = {step.spec.name: step for step in steps}

    def new_cache(self) -> KV:
        return {name: t for name, t in self._steps["decode"].sample_inputs().items() if name.startswith("kv_cache_")}

    def run(
        self, graph: str, inputs: Mapping[str, npt.NDArray[Any]], cache: KV | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        step, kv = self._steps[graph], cache or {}
        feed = {t.name: kv[t.name] if t.is_kv else torch.from_numpy(np.array(inputs[t.name])) for t in step.spec.inputs}
        with torch.no_grad():
            outputs = step.module(**feed)
        kv.update((t.name, outputs[t.name]) for t in step.spec.outputs if t.is_kv)
        return {t.name: outputs[t.name].numpy() for t in step.spec.outputs if not t.is_kv}

    def read_kv(self, cache: KV) -> dict[str, npt.NDArray[np.float32]]:
        return {name: tensor.numpy().copy() for name, tensor in cache.items()}

    def close(self) -> None:
        self._steps.clear()


def quantize_as_recipe(steps: list[Step], recipes: Recipes) -> None:
    """Makes the steps compute as the quantized graphs do, in place: weights rounded, activations as well.

    A linear operator with quantized weights gets its input quantized to int8 on the fly, one range a row.
    """
    for name, module in all_weights(steps).items():
        rule = recipes.of(name.partition(".")[0]).rule_for(name)
        if rule.dtype == "float32":
            continue
        rounded = torch.from_numpy(round_trip(module.weight.detach().numpy(), rule))
        module.weight = torch.nn.Parameter(rounded, requires_grad=False)
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (round_trip_rows(inputs[0]),))


def round_trip_rows(x: Tensor) -> Tensor:
    """Asymmetric int8 with one scale and zero point a row, zero exact: XNNPACK's `qd8` (its `f32-qdint8` convert)."""
    low, high = x.amin(-1, keepdim=True).clamp_max(0.0), x.amax(-1, keepdim=True).clamp_min(0.0)
    scale = ((high - low) / 255.0).clamp_min(1e-30)
    zero = torch.round(-128.0 - low / scale).clamp(-128, 127)
    return (torch.round(x / scale + zero).clamp(-128, 127) - zero) * scale
