"""The target's graphs: prefill, decode, verify and the two embedders, with LiteRT-LM's tensor names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pocketdraft.runtime.graphs import GraphSpec, PartName, TensorSpec

from ..kv_int8 import open_kv
from ..kv_layout import KVLayout
from ..models.decoder import Target
from ..models.layers import capped
from ..step import Operators, Plain, Step, spec

Part = Literal["embedder", "per_layer_embedder"]


@dataclass(frozen=True)
class Wants:
    """What a bundle's drafters want of the target's graphs: the hidden states after the layers `taps`, side by side;
    those after the final norm of a prompt's tokens too; its head on so many of their own hidden states at once."""

    taps: tuple[int, ...] = ()
    prefill_hidden: bool = False
    heads: tuple[int, ...] = ()

    def __or__(self, other: Wants) -> Wants:
        """Of both. Taps are one drafter's."""
        heads = tuple(sorted({*self.heads, *other.heads}))
        return Wants(self.taps or other.taps, self.prefill_hidden or other.prefill_hidden, heads)


class _TargetStep(nn.Module):
    """Prefill keeps K/V only; decode and verify also give logits and the hidden state after the final norm."""

    def __init__(
        self,
        target: Target,
        layout: KVLayout,
        operators: Operators,
        width: int,
        outputs: tuple[str, ...],
        taps: tuple[int, ...],
    ) -> None:
        """`width` is the graph's: where it is symbolic, the most that it can be."""
        super().__init__()
        self.width = width
        self.trunk = target.trunk
        self.outputs, self.taps = outputs, taps
        self.lm_head = target.lm_head if "logits" in outputs else None
        self.softcap, self.kv_steps, self.operators = target.geometry.softcap, layout.steps, operators
        self.owner = layout.owner

    def forward(
        self,
        embeddings: Tensor,
        input_pos: Tensor,
        mask: Tensor,
        per_layer_embeddings: Tensor | None = None,
        **kv_cache: Tensor,
    ) -> dict[str, Tensor]:
        start = input_pos[:1]
        last = start + (input_pos.shape[0] - 1)
        kv = open_kv(self.kv_steps, kv_cache, start, last, mask.shape[-1], self.operators, self.owner, self.width)
        states = self.trunk.states(embeddings, per_layer_embeddings, input_pos, mask, kv)
        found = dict(kv.tensors)
        if self.taps:
            found["taps"] = torch.cat([states[layer] for layer in self.taps], -1)
        if "activations" in self.outputs:
            found["activations"] = self.trunk.norm(states[-1])
        if self.lm_head is not None:
            found["logits"] = capped(self.lm_head(found["activations"]), self.softcap)
        return found


class _Head(nn.Module):
    """The target's head on hidden states that a drafter made. No softcap: transformers' drafters have none either."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.lm_head = target.lm_head

    def forward(self, activations: Tensor) -> dict[str, Tensor]:
        return {"logits": self.lm_head(activations)}


class _Embed(nn.Module):
    """Rows times `scale`. LiteRT-LM marks absent tokens with negative ids."""

    def __init__(self, table: nn.Embedding, rows: tuple[int, ...], scale: float) -> None:
        super().__init__()
        self.table, self.rows, self.scale = table, rows, scale

    def forward(self, token_ids: Tensor) -> dict[str, Tensor]:
        tokens = torch.maximum(token_ids, torch.tensor(0, dtype=torch.int32))
        rows = self.table(tokens) if self.scale == 1.0 else self.table(tokens) * self.scale
        return {"embeddings": rows.reshape(1, token_ids.shape[1], *self.rows)}


def target_steps(
    target: Target,
    layout: KVLayout,
    prefill: tuple[int, ...],
    verify: tuple[int, ...],
    operators: Operators,
    wants: Wants = Wants(),
) -> list[Step]:
    """`prefill_N` for each N, `decode`, `verify_K` for each width K, and `verify`, which LiteRT-LM calls.

    `verify` has the first width of `verify`: its drafts per round are that width less one.
    """
    g = target.geometry

    def step(name: str, role: Literal["prefill", "decode", "verify"], width: int) -> Step:
        sizes = {"logits": g.vocab, "activations": g.hidden, "taps": g.hidden * len(wants.taps)}
        if role == "prefill":
            del sizes["logits"]
            if not wants.prefill_hidden:
                del sizes["activations"]
        if not wants.taps:
            del sizes["taps"]
        graph = GraphSpec(
            name=name,
            role=role,
            part="target",
            width=width,
            inputs=(*target_inputs(target, layout, width), *layout.tensors(), *operators.inputs),
            outputs=(*(spec(one, "float32", 1, width, size) for one, size in sizes.items()), *layout.tensors()),
        )
        return Step(graph, _TargetStep(target, layout, operators, width, tuple(sizes), wants.taps).eval())

    return [
        *(step(f"prefill_{width}", "prefill", width) for width in prefill),
        step("decode", "decode", 1),
        *(step("verify" if width == verify[0] else f"verify_{width}", "verify", width) for width in verify),
        *(head_step(_Head(target), f"head_{width}", "target", (width, g.hidden, g.vocab)) for width in wants.heads),
    ]


def head_step(module: nn.Module, name: str, part: PartName, sizes: tuple[int, int, int]) -> Step:
    """A head that drafts: `sizes` are its width, that of a hidden state, and how many logits it gives."""
    width, hidden, vocab = sizes
    graph = GraphSpec(
        name=name,
        role="head",
        part=part,
        width=width,
        inputs=(spec("activations", "float32", 1, width, hidden),),
        outputs=(spec("logits", "float32", 1, width, vocab),),
    )
    return Step(graph, module.eval())


def embedder_steps(target: Target) -> list[Step]:
    """`embedder` and, where the model has per-layer embeddings, `per_layer_embedder`; one token per call."""
    g = target.geometry
    tokens = spec("token_ids", "int32", 1, 1)

    def step(name: str, role: Literal["embed", "embed_per_layer"], part: Part, module: _Embed) -> Step:
        rows = spec("embeddings", "float32", 1, 1, *module.rows)
        graph = GraphSpec(name=name, role=role, part=part, width=1, inputs=(tokens,), outputs=(rows,))
        return Step(graph, module.eval())

    steps = [step("embedder", "embed", "embedder", _Embed(target.embed_tokens, (g.hidden,), g.embedding_scale))]
    if g.per_layer:
        module = _Embed(target.embed_tokens_per_layer, (len(g.layers), g.per_layer), math.sqrt(g.per_layer))
        steps.append(step("per_layer_embedder", "embed_per_layer", "per_layer_embedder", module))
    return steps


def reading_steps(target: Target, tokens: int) -> list[Step]:
    """What reading texts of at most so many tokens takes: `verify` of that width, and the embedders."""
    layout = KVLayout.of(target.geometry, tokens)
    return [*target_steps(target, layout, (), (tokens,), Plain()), *embedder_steps(target)]


def target_inputs(target: Target, layout: KVLayout, width: int) -> tuple[TensorSpec, ...]:
    """All but K/V."""
    g = target.geometry
    inputs = [
        spec("embeddings", "float32", 1, width, g.hidden),
        spec("input_pos", "int32", width),
        spec("mask", "bool", 1, 1, width, layout.context),
    ]
    if g.per_layer:
        inputs.append(spec("per_layer_embeddings", "float32", 1, width, len(g.layers), g.per_layer))
    return tuple(inputs)
