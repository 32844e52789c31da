"""K/V kept as int8: a quarter of the memory, for a cast of the cache in each layer that owns it.

Gemma 4 norms keys and values of each head before they are kept, so that one static step a layer does. A runtime sees
int8 tensors as a graph's inputs and outputs, without quantization parameters of their own; the steps are constants
of the graph, where they multiply the query and the result, never the cache. Layers that share K/V share the cast.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pocketdraft.runtime.graphs import KVSteps

from .step import Operators, StepKV
from .stored import Stored

HIGHEST = 127
KV_STEP = re.compile(r"layers\.(\d+)\.self_attn\.([kv])_cache_scale$")


class Int8KV(StepKV):
    """As `StepKV`, with K [1, G, S, d] and V [1, G, d, S] int8. `steps` are by the layer that owns them."""

    def __init__(
        self,
        tensors: dict[str, Tensor],
        start: Tensor,
        last: Tensor,
        context: int,
        operators: Operators,
        steps: Mapping[int, KVSteps],
        widest: int = 0,
    ) -> None:
        super().__init__(tensors, start, last, context, operators, widest=widest)
        self._steps = steps
        self._cast: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        self._cast.pop(layer, None)
        steps = self._steps[layer]
        keys, values = self._operators.write(
            *super().read(layer), _to_int8(key, steps.keys), _to_int8(value, steps.values), self._call
        )
        self.put(layer, keys, values)

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """As float32, in steps."""
        if layer not in self._cast:
            keys, values = super().read(layer)
            self._cast[layer] = keys.to(torch.float32), values.to(torch.float32)
        return self._cast[layer]

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        layer = next(layer for layer, cast in self._cast.items() if cast[0] is keys)
        steps = self._steps[layer]
        return super().attend(query * steps.keys, keys, values, mask) * steps.values


def open_kv(
    steps: tuple[tuple[int, KVSteps], ...],
    tensors: dict[str, Tensor],
    start: Tensor,
    last: Tensor,
    context: int,
    operators: Operators,
    owner: str = "",
    widest: int = 0,
) -> StepKV:
    """K/V of a call. `steps` are those of `KVLayout.steps`, none where K/V are float32."""
    if not steps:
        return StepKV(tensors, start, last, context, operators, owner, widest)
    return Int8KV(tensors, start, last, context, operators, dict(steps), widest)


def steps_in(tensors: Mapping[str, Stored]) -> dict[int, KVSteps]:
    """By layer, where a checkpoint says them: `pocketdraft calibrate` writes them under Google's names."""
    found: dict[int, dict[str, float]] = {}
    for name, stored in tensors.items():
        if match := KV_STEP.search(name):
            found.setdefault(int(match[1]), {})[match[2]] = float(stored.read().max())
    return {layer: KVSteps(own["k"], own["v"]) for layer, own in found.items() if len(own) == 2}


def _to_int8(rows: Tensor, step: float) -> Tensor:
    return torch.clamp(torch.round(rows * (1 / step)), -HIGHEST, HIGHEST).to(torch.int8)
