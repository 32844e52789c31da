"""The MTP drafter's graph: one draft step that reads two of the target's KV layers and writes none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn
from transformers import PretrainedConfig

from pocketdraft.runtime.drafter_specs import MTPSpec
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.graphs import GraphSpec

from ..checkpoint import Checkpoint
from ..families import geometry_of
from ..kv_int8 import open_kv
from ..kv_layout import KVLayout
from ..models import gemma4
from ..models.decoder import Geometry, Target
from ..models.gemma4_assistant import Drafter, make_drafter
from ..models.masks import Kind
from ..plan import Plan
from ..step import Operators, Step, spec
from .target import Wants

Head = Literal["dense", "centroid"]
Position = Literal["pending", "last_cached"]
KIND = "mtp"
MODEL_TYPES = ("gemma4_assistant", "gemma4_unified_assistant")


def facts(target: Checkpoint, drafter: Checkpoint) -> Iterator[tuple[str, object, object]]:
    """What must agree: what it is, the target's value, the drafter's."""
    ours, theirs = target.text_config, drafter.text_config
    yield "vocabulary size", ours.vocab_size, theirs.vocab_size
    yield "backbone hidden size", ours.hidden_size, drafter.config.backbone_hidden_size
    geometry = geometry_of(target.config)
    kinds: tuple[Kind, Kind] = ("sliding", "full")
    yield "layers to read of the kinds", sorted({layer.kind for layer in geometry.layers}), sorted(kinds)
    reader = gemma4.Geometry.from_config(theirs, geometry)
    for kind in kinds:
        owner = geometry.layers[geometry.last_owner(kind)]
        for layer in reader.layers:
            if layer.kind == kind:
                yield f"{kind} layers with KV heads", owner.kv_heads, layer.kv_heads
                yield f"{kind} layers with head size", owner.head_dim, layer.head_dim
    yield "sliding window", geometry.window, reader.window
    if drafter.config.use_ordered_embeddings:
        members = theirs.vocab_size // drafter.config.num_centroids * drafter.config.num_centroids
        yield "centroids that cover a vocabulary of", ours.vocab_size, members


def make(config: PretrainedConfig, target: Target) -> Drafter:
    return make_drafter(config, target.geometry)


def tied(model: Drafter) -> dict[str, str]:
    heads = {"lm_head.weight": "embed_tokens.weight"}
    return heads | ({"masked_embedding.rows.weight": "lm_head.weight"} if model.has_centroids else {})


def own_name(name: str, config: PretrainedConfig) -> str | None:
    return gemma4.own_name(name, config.get_text_config())


def wants(model: Drafter) -> Wants:
    return Wants()


def describe(model: Drafter, plan: Plan, target: Target) -> MTPSpec:
    g = target.geometry
    full, sliding = g.last_owner("full"), g.last_owner("sliding")
    return MTPSpec(head=_head(model, plan), position=plan.position, kv_full=full, kv_sliding=sliding)


def steps(model: Drafter, plan: Plan, target: Target, target_kv: KVLayout, operators: Operators) -> list[Step]:
    return [mtp_step(model, target.geometry, target_kv, _head(model, plan), plan.position, operators)]


def _head(model: Drafter, plan: Plan) -> Head:
    """Raises PocketdraftError if a centroid head is asked for where the checkpoint has none."""
    if plan.head == "centroid" and not model.has_centroids:
        raise PocketdraftError("The drafter has a dense head only, --head asks for centroid; leave --head out.")
    return "centroid" if plan.allows_centroids and model.has_centroids else "dense"


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
