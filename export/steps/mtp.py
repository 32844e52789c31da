"""The MTP drafter's graph: one draft step that reads two of the target's KV layers and writes none."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pocketdraft.runtime.manifest import DrafterSpec, GraphSpec

from ..kv_int8 import open_kv
from ..kv_layout import KVLayout
from ..models.decoder import Geometry
from ..models.gemma4_assistant import Drafter
from ..step import Operators, Step, spec

Head = Literal["dense", "centroid"]
Position = Literal["pending", "last_cached"]


class _DraftStep(nn.Module):
    """`input_pos` is the last cached position p - 1; a drafter trained at the pending position p adds one."""

    def __init__(self, drafter: Drafter, layout: KVLayout, head: Head, offset: int, operators: Operators) -> None:
        super().__init__()
        self.pre_projection, self.trunk = drafter.pre_projection, drafter.trunk
        self.post_projection = drafter.post_projection
        self.head = drafter.lm_head if head == "dense" else drafter.masked_embedding
        self.offset, self.kv_steps, self.operators = offset, layout.steps, operators

    def forward(self, activations: Tensor, input_pos: Tensor, mask: Tensor, **kv_cache: Tensor) -> dict[str, Tensor]:
        position = input_pos + self.offset
        kv = open_kv(self.kv_steps, kv_cache, position, input_pos, mask.shape[-1], self.operators)
        hidden = self.trunk(self.pre_projection(activations), None, position, mask, kv)
        return {"logits": self.head(hidden), "projected_activations": self.post_projection(hidden)}


def mtp_step(
    drafter: Drafter, target: Geometry, layout: KVLayout, head: Head, position: Position, operators: Operators
) -> Step:
    read = {target.last_owner("full"), target.last_owner("sliding")}
    graph = GraphSpec(
        name="mtp_drafter",
        role="draft",
        part="drafter",
        width=1,
        inputs=(
            spec("activations", "float32", 1, 1, 2 * target.hidden),
            spec("input_pos", "int32", 1),
            spec("mask", "bool", 1, 1, 1, layout.context),
            *layout.tensors(read),
            *operators.inputs,
        ),
        outputs=(
            spec("logits", "float32", 1, 1, drafter.geometry.vocab),
            spec("projected_activations", "float32", 1, 1, target.hidden),
        ),
    )
    return Step(graph, _DraftStep(drafter, layout, head, 1 if position == "pending" else 0, operators).eval())


def drafter_spec(target: Geometry, head: Head, position: Position) -> DrafterSpec:
    full, sliding = target.last_owner("full"), target.last_owner("sliding")
    return DrafterSpec(kind="mtp", head=head, position=position, kv_full=full, kv_sliding=sliding)
