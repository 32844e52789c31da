"""K/V kept as int8: a quarter of the memory, for a cast of the cache in each layer that owns it.

Gemma 4 norms keys and values of each head before they are kept, so that one static scale a layer does: its KL is a
third of that of int8 weights. A runtime sees int8 tensors as a graph's inputs and outputs, without quantization
parameters of their own; the scales are constants of the graph, where they multiply the query and the result, never
the cache. Layers that share K/V share the cast as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .step import Operators, StepKV

HIGHEST = 127


@dataclass(frozen=True)
class KVScales:
    """Of one layer: what a step of int8 is worth."""

    keys: float
    values: float

    @staticmethod
    def reaching(keys: float, values: float) -> KVScales:
        """For keys and values up to these magnitudes."""
        return KVScales(keys / HIGHEST, values / HIGHEST)


class Int8KV(StepKV):
    """As `StepKV`, with K [1, G, S, d] and V [1, G, d, S] int8. `scales` are by the layer that owns them."""

    def __init__(
        self,
        tensors: dict[str, Tensor],
        start: Tensor,
        last: Tensor,
        context: int,
        operators: Operators,
        scales: Mapping[int, KVScales],
    ) -> None:
        super().__init__(tensors, start, last, context, operators)
        self._scales = scales
        self._cast: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        self._cast.pop(layer, None)
        scales = self._scales[layer]
        keys, values = self._operators.write(
            *super().read(layer), _to_int8(key, scales.keys), _to_int8(value, scales.values), self._call
        )
        self.tensors |= {f"kv_cache_k_{layer}": keys, f"kv_cache_v_{layer}": values}

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """As float32, in steps of the layer's scales."""
        if layer not in self._cast:
            keys, values = super().read(layer)
            self._cast[layer] = keys.to(torch.float32), values.to(torch.float32)
        return self._cast[layer]

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        layer = next(layer for layer, cast in self._cast.items() if cast[0] is keys)
        scales = self._scales[layer]
        return super().attend(query * scales.keys, keys, values, mask) * scales.values


def _to_int8(rows: Tensor, scale: float) -> Tensor:
    return torch.clamp(torch.round(rows * (1 / scale)), -HIGHEST, HIGHEST).to(torch.int8)
