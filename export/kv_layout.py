"""Which target layers own K/V, which of them the drafter reads, and what their tensors are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pocketdraft.runtime.graphs import ROWS_KEPT, SETTLED, STATE, KVLayer, KVSteps, TensorSpec

from .models.decoder import Geometry, Recurrence


@dataclass(frozen=True)
class KVLayout:
    """K is [1, heads, slots, head_dim], V is [1, heads, head_dim, slots]. See `KVLayer` for rings.

    `owner` comes before the names of K/V that are a drafter's own, "dflash_". `recurrent` layers have a memory instead
    (`delta_net.py`), from which `back` tokens can be taken back.
    """

    layers: tuple[KVLayer, ...]
    context: int
    owner: str = ""
    recurrent: Mapping[int, Recurrence] = field(default_factory=dict)
    back: int = 1

    @staticmethod
    def of(
        target: Geometry,
        context: int,
        widest: int | None = None,
        steps: Mapping[int, KVSteps] | None = None,
        back: int = 1,
    ) -> KVLayout:
        """Sliding layers are rings if `widest`, the most tokens of a call, is given and the context is longer.

        K/V are int8 in these `steps` if they are given. `back` is the most tokens of a verify.

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
                steps=steps[index] if steps else None,
            )
            for index, layer in enumerate(target.layers)
            if layer.owns_kv
        ]
        return KVLayout(tuple(layers), context, recurrent=target.recurrent, back=back)

    @staticmethod
    def own(owner: str, layers: int, heads: int, head_dim: int, context: int) -> KVLayout:
        """Of a drafter that keeps K/V of the whole context in each of its layers."""
        kept = [KVLayer(layer=index, kind="full", heads=heads, head_dim=head_dim) for index in range(layers)]
        return KVLayout(tuple(kept), context, f"{owner}_")

    @property
    def steps(self) -> tuple[tuple[int, KVSteps], ...]:
        """Those of the layers whose K/V are int8."""
        return tuple((layer.layer, layer.steps) for layer in self.layers if layer.steps is not None)

    def tensors(self, layers: set[int] | None = None) -> tuple[TensorSpec, ...]:
        """K and V of the given layers, or of all, and with those what recurrent layers keep."""
        specs = []
        for layer in self.layers:
            if layers is None or layer.layer in layers:
                slots = layer.slots or self.context
                key = (1, layer.heads, slots, layer.head_dim)
                value = (1, layer.heads, layer.head_dim, slots)
                for name, shape in (("k", key), ("v", value)):
                    specs.append(
                        TensorSpec(
                            name=f"{self.owner}kv_cache_{name}_{layer.layer}",
                            dtype="int8" if layer.steps else "float32",
                            shape=shape,
                        )
                    )
        return (*specs, *(self._memory() if layers is None else ()))

    def _memory(self) -> Iterator[TensorSpec]:
        if self.recurrent:
            yield TensorSpec(name=f"{self.owner}{SETTLED}", dtype="int32", shape=(1,))
        for layer, of in self.recurrent.items():
            for name, shape in zip((STATE, ROWS_KEPT), of.shapes(self.back), strict=True):
                yield TensorSpec(name=f"{self.owner}{name}_{layer}", dtype="float32", shape=shape)


def _rounded_up(slots: int) -> int:
    return -(-slots // 16) * 16
