"""Which target layers own K/V, which of them the drafter reads, and what their tensors are called."""

from __future__ import annotations

from dataclasses import dataclass

from pocketdraft.runtime.manifest import KVLayer, TensorSpec

from .models.gemma4 import Geometry


@dataclass(frozen=True)
class KVLayout:
    """K is [1, heads, context, head_dim], V is [1, heads, head_dim, context], both float32."""

    layers: tuple[KVLayer, ...]
    context: int

    @staticmethod
    def of(target: Geometry, context: int) -> KVLayout:
        layers = [
            KVLayer(layer=index, kind=layer.kind, heads=layer.kv_heads, head_dim=layer.head_dim)
            for index, layer in enumerate(target.layers)
            if layer.owns_kv
        ]
        return KVLayout(tuple(layers), context)

    def tensors(self, layers: set[int] | None = None) -> tuple[TensorSpec, ...]:
        """K and V of the given layers, or of all."""
        specs = []
        for layer in self.layers:
            if layers is None or layer.layer in layers:
                key = (1, layer.heads, self.context, layer.head_dim)
                value = (1, layer.heads, layer.head_dim, self.context)
                specs.append(TensorSpec(name=f"kv_cache_k_{layer.layer}", dtype="float32", shape=key))
                specs.append(TensorSpec(name=f"kv_cache_v_{layer.layer}", dtype="float32", shape=value))
        return tuple(specs)
