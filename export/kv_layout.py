"""Which target layers own K/V, which of them the drafter reads, and what their tensors are called."""

from __future__ import annotations

from dataclasses import dataclass

from pocketdraft.runtime.manifest import KVLayer, TensorSpec

from .models.gemma4 import Geometry


@dataclass(frozen=True)
class KVLayout:
    """K is [1, heads, slots, head_dim], V is [1, heads, head_dim, slots], both float32. See `KVLayer` for rings."""

    layers: tuple[KVLayer, ...]
    context: int

    @staticmethod
    def of(target: Geometry, context: int, widest: int | None = None) -> KVLayout:
        """Sliding layers are rings if `widest`, the most tokens of a call, is given and the context is longer.

        A ring holds the window of the call's first token beside all rows of the call: what is written and then
        refused, or padding, has taken the place of nothing that a later call, from the next slot on, can see.
        """
        ring = None if widest is None else _rounded_up(target.window + widest - 1)
        layers = [
            KVLayer(
                layer=index,
                kind=layer.kind,
                heads=layer.kv_heads,
                head_dim=layer.head_dim,
                slots=ring if layer.kind == "sliding" and ring and ring < context else None,
            )
            for index, layer in enumerate(target.layers)
            if layer.owns_kv
        ]
        return KVLayout(tuple(layers), context)

    def tensors(self, layers: set[int] | None = None) -> tuple[TensorSpec, ...]:
        """K and V of the given layers, or of all."""
        specs = []
        for layer in self.layers:
            if layers is None or layer.layer in layers:
                slots = layer.slots or self.context
                key = (1, layer.heads, slots, layer.head_dim)
                value = (1, layer.heads, layer.head_dim, slots)
                specs.append(TensorSpec(name=f"kv_cache_k_{layer.layer}", dtype="float32", shape=key))
                specs.append(TensorSpec(name=f"kv_cache_v_{layer.layer}", dtype="float32", shape=value))
        return tuple(specs)


def _rounded_up(slots: int) -> int:
    return -(-slots // 16) * 16
