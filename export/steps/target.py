"""The target's graphs: prefill, decode, verify and the two embedders, with LiteRT-LM's tensor names."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from pocketdraft.runtime.manifest import GraphSpec, TensorSpec

from ..kv_int8 import open_kv
from ..kv_layout import KVLayout
from ..models.decoder import Target
from ..step import Operators, Plain, Step, spec

Part = Literal["embedder", "per_layer_embedder"]


class _TargetStep(nn.Module):
    """Prefill keeps K/V only; decode and verify also give logits and the hidden state after the final norm."""

    def __init__(self, target: Target, layout: KVLayout, operators: Operators, with_logits: bool) -> None:
        super().__init__()
        self.trunk = target.trunk
        self.lm_head = target.lm_head if with_logits else None
        self.softcap, self.kv_steps, self.operators = target.geometry.softcap, layout.steps, operators

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
        kv = open_kv(self.kv_steps, kv_cache, start, last, mask.shape[-1], self.operators)
        hidden = self.trunk(embeddings, per_layer_embeddings, input_pos, mask, kv)
        if self.lm_head is None:
            return kv.tensors
        logits = self.lm_head(hidden)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return {"logits": logits, "activations": hidden, **kv.tensors}


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
    target: Target, layout: KVLayout, prefill: tuple[int, ...], verify: tuple[int, ...], operators: Operators
) -> list[Step]:
    """`prefill_N` for each N, `decode`, `verify_K` for each width K, and `verify`, which LiteRT-LM calls.

    `verify` has the first width of `verify`: its drafts per round are that width less one.
    """

    def step(name: str, role: Literal["prefill", "decode", "verify"], width: int) -> Step:
        with_logits = role != "prefill"
        outputs: tuple[TensorSpec, ...] = layout.tensors()
        if with_logits:
            g = target.geometry
            logits = spec("logits", "float32", 1, width, g.vocab)
            outputs = (logits, spec("activations", "float32", 1, width, g.hidden), *outputs)
        graph = GraphSpec(
            name=name,
            role=role,
            part="target",
            width=width,
            inputs=(*_inputs(target, layout, width), *operators.inputs),
            outputs=outputs,
        )
        return Step(graph, _TargetStep(target, layout, operators, with_logits).eval())

    return [
        *(step(f"prefill_{width}", "prefill", width) for width in prefill),
        step("decode", "decode", 1),
        step("verify", "verify", verify[0]),
        *(step(f"verify_{width}", "verify", width) for width in verify[1:]),
    ]


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


def _inputs(target: Target, layout: KVLayout, width: int) -> tuple[TensorSpec, ...]:
    g = target.geometry
    inputs = [
        spec("embeddings", "float32", 1, width, g.hidden),
        spec("input_pos", "int32", width),
        spec("mask", "bool", 1, 1, width, layout.context),
    ]
    if g.per_layer:
        inputs.append(spec("per_layer_embeddings", "float32", 1, width, len(g.layers), g.per_layer))
    return (*inputs, *layout.tensors())
