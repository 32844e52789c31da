"""DFlash's graphs: K/V of committed positions from the target's taps, and one pass over a block of masks."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from transformers import PretrainedConfig

from pocketdraft.runtime.drafter_specs import DFlashSpec
from pocketdraft.runtime.graphs import GraphSpec, TensorSpec

from ..checkpoint import Checkpoint
from ..kv_int8 import open_kv
from ..kv_layout import KVLayout
from ..models.decoder import Target
from ..models.dflash import DFlash, DFlashGeometry
from ..plan import Plan
from ..step import Operators, Step, spec
from .target import Wants

KIND = "dflash"
MODEL_TYPES = ("muse_glimmer_assistant",)


def facts(target: Checkpoint, drafter: Checkpoint) -> Iterator[tuple[str, object, object]]:
    """What must agree: what it is, the target's value, the drafter's."""
    ours, theirs = target.text_config, drafter.config
    yield "hidden size", ours.hidden_size, theirs.hidden_size
    layers = ours.num_hidden_layers
    outside = [layer for layer in theirs.target_layer_ids if not 0 <= layer < layers]
    yield f"taps of layers beyond the target's {layers}", [], outside
    yield "mask token in a vocabulary of", ours.vocab_size, max(ours.vocab_size, theirs.mask_token_id + 1)


def make(config: PretrainedConfig, target: Target) -> DFlash:
    return DFlash(DFlashGeometry.from_config(config))


def own_name(name: str, config: PretrainedConfig) -> str | None:
    return name


def tied(model: DFlash) -> dict[str, str]:
    return {}


def wants(model: DFlash) -> Wants:
    return Wants(taps=model.geometry.taps, heads=(model.geometry.block,))


def describe(model: DFlash, plan: Plan, target: Target) -> DFlashSpec:
    g = model.geometry
    return DFlashSpec(block=g.block, mask_token=g.mask_token, taps=g.taps)


def steps(model: DFlash, plan: Plan, target: Target, target_kv: KVLayout, operators: Operators) -> list[Step]:
    """`dflash_context_W` for every number of tokens that the target commits at once, and `dflash_draft`."""
    g = model.geometry
    layout = KVLayout.own(KIND, len(g.kinds), g.size.kv_heads, g.size.head_dim, plan.context)

    def step(role: str, width: int, inputs: list[TensorSpec], outputs: list[TensorSpec], module: nn.Module) -> Step:
        graph = GraphSpec.model_validate(
            {
                "name": role if role == "dflash_draft" else f"{role}_{width}",
                "role": role,
                "part": KIND,
                "width": width,
                "inputs": (*inputs, spec("input_pos", "int32", width), *layout.tensors(), *operators.inputs),
                "outputs": (*outputs, *layout.tensors()),
            }
        )
        return Step(graph, module.eval())

    widths = sorted({1, *plan.prefill, *plan.verify})
    size = g.size.hidden * len(g.taps)
    context = _Context(model, layout, operators)
    return [
        *(step("dflash_context", w, [spec("taps", "float32", 1, w, size)], [], context) for w in widths),
        step(
            "dflash_draft",
            g.block,
            [
                spec("embeddings", "float32", 1, g.block, g.size.hidden),
                spec("mask", "bool", 1, 1, g.block, plan.context),
            ],
            [spec("activations", "float32", 1, g.block, g.size.hidden)],
            _Draft(model, layout, operators),
        ),
    ]


class _Context(nn.Module):
    """K/V of committed positions."""

    def __init__(self, model: DFlash, layout: KVLayout, operators: Operators) -> None:
        super().__init__()
        self.model, self.operators = model, operators
        self.owner, self.context = layout.owner, layout.context

    def forward(self, taps: Tensor, input_pos: Tensor, **kv_cache: Tensor) -> dict[str, Tensor]:
        start, last = input_pos[:1], input_pos[-1:]
        kv = open_kv((), kv_cache, start, last, self.context, self.operators, self.owner)
        self.model.context(taps, input_pos, kv)
        return kv.tensors


class _Draft(nn.Module):
    """The hidden states of a block. Its own K/V lie where those of the next committed positions will."""

    def __init__(self, model: DFlash, layout: KVLayout, operators: Operators) -> None:
        super().__init__()
        self.model, self.operators, self.owner = model, operators, layout.owner

    def forward(self, embeddings: Tensor, mask: Tensor, input_pos: Tensor, **kv_cache: Tensor) -> dict[str, Tensor]:
        start, last = input_pos[:1], input_pos[-1:]
        kv = open_kv((), kv_cache, start, last, mask.shape[-1], self.operators, self.owner)
        hidden = self.model.draft(embeddings, input_pos, mask, kv)
        return {"activations": hidden, **kv.tensors}
