"""Native MTP heads: decoder layers with K/V of their own, over the target's hidden state beside the next token."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from transformers import PretrainedConfig

from pocketdraft.runtime.drafter_specs import MTPHeadsSpec
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.graphs import GraphSpec

from ..checkpoint import Checkpoint
from ..kv_int8 import open_kv
from ..kv_layout import KVLayout
from ..models.decoder import Target
from ..models.mtp_heads import HeadGeometry, MtpHead
from ..plan import Plan
from ..step import Operators, Step, spec
from .target import Wants, head_step

KIND = "mtp_heads"
MODEL_TYPES = ("pocketdraft_mtp_heads",)


def facts(target: Checkpoint, drafter: Checkpoint) -> Iterator[tuple[str, object, object]]:
    """What must agree: what it is, the target's value, the drafter's."""
    yield "hidden size", target.text_config.hidden_size, drafter.config.hidden_size
    yield "vocabulary size", target.text_config.vocab_size, drafter.config.vocab_size


def make(config: PretrainedConfig, target: Target) -> MtpHead:
    """Raises PocketdraftError where the checkpoint has several heads."""
    if config.num_mtp_layers != 1:
        raise PocketdraftError(
            f"The checkpoint has {config.num_mtp_layers} MTP layers; pocketdraft drafts with one, as often as asked: "
            "give one."
        )
    return MtpHead(HeadGeometry.from_config(config))


def own_name(name: str, config: PretrainedConfig) -> str | None:
    return name.removeprefix("mtp.")


def tied(model: MtpHead) -> dict[str, str]:
    return {}


def wants(model: MtpHead) -> Wants:
    return Wants(prefill_hidden=True, heads=() if model.geometry.draft_vocab else (1,))


def describe(model: MtpHead, plan: Plan, target: Target) -> MTPHeadsSpec:
    return MTPHeadsSpec(heads=1)


def steps(model: MtpHead, plan: Plan, target: Target, target_kv: KVLayout, operators: Operators) -> list[Step]:
    """`mtp_heads_W` for every number of tokens that the target commits at once; width 1 drafts. A head of its own is
    `mtp_heads_head`, in the place of the target's `head_1`."""
    g = model.geometry
    layout = KVLayout.own(KIND, 1, g.size.kv_heads, g.size.head_dim, plan.context)
    rows = ("embeddings", "activations")

    def step(width: int) -> Step:
        graph = GraphSpec(
            name=f"mtp_heads_{width}",
            role="mtp_heads",
            part="mtp_heads",
            width=width,
            inputs=(
                *(spec(name, "float32", 1, width, g.size.hidden) for name in rows),
                spec("input_pos", "int32", width),
                spec("mask", "bool", 1, 1, width, plan.context),
                *layout.tensors(),
                *operators.inputs,
            ),
            outputs=(spec("projected_activations", "float32", 1, width, g.size.hidden), *layout.tensors()),
        )
        return Step(graph, _Head(model, layout, operators).eval())

    steps = [step(width) for width in sorted({1, *plan.prefill, *plan.verify})]
    if g.draft_vocab:
        steps.append(head_step(_OwnHead(model), "mtp_heads_head", "mtp_heads", (1, g.size.hidden, g.vocab)))
    return steps


class _OwnHead(nn.Module):
    def __init__(self, model: MtpHead) -> None:
        super().__init__()
        self.model = model

    def forward(self, activations: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model.logits(activations)}


class _Head(nn.Module):
    def __init__(self, model: MtpHead, layout: KVLayout, operators: Operators) -> None:
        super().__init__()
        self.model, self.operators, self.owner = model, operators, layout.owner

    def forward(
        self, embeddings: Tensor, activations: Tensor, input_pos: Tensor, mask: Tensor, **kv_cache: Tensor
    ) -> dict[str, Tensor]:
        start, last = input_pos[:1], input_pos[-1:]
        kv = open_kv((), kv_cache, start, last, mask.shape[-1], self.operators, self.owner)
        hidden = self.model(embeddings, activations, input_pos, mask, kv)
        return {"projected_activations": hidden, **kv.tensors}
