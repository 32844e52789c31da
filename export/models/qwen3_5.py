"""Qwen3.5 as a target, written for export: three layers of a gated delta rule to one of gated attention.

The same arithmetic as the text half of transformers' `modeling_qwen3_5.py`, with static shapes and all that is kept as
explicit tensors. Its multi-axis RoPE is the usual one for text, of a quarter of the head. Batch is 1 throughout.
Letters in shapes are those of `decoder.py`, `attention.py` and `delta_net.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from .attention import KVAccess, rotary
from .decoder import Geometry, Layer, Target, Trunk, check_choices
from .delta_net import GatedDeltaNet, Recent
from .layers import GatedMLP, SiLU
from .llama_layer import DecoderLayer, LayerSize
from .masks import additive_masks

MODEL_TYPES = ("qwen3_5", "qwen3_5_text")
LEFT_OUT = ("mtp.", "model.visual.", "visual.")  # its native MTP head, and what sees


def geometry_of(config: PretrainedConfig) -> Geometry:
    """Of a `Qwen3_5TextConfig`. Raises PocketdraftError for what the graphs do not cover."""
    check_choices(config, _choices(config))
    rope = config.rope_parameters
    return Geometry(
        vocab=config.vocab_size,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        layers=tuple(_layers(config)),
        eps=config.rms_norm_eps,
        tied_head=config.tie_word_embeddings,
        rope={"full": (rope["rope_theta"], rope.get("partial_rotary_factor", 1.0))},
        zero_centred=True,
    )


def _choices(config: PretrainedConfig) -> Iterator[tuple[str, object, object]]:
    """See `check_choices`."""
    yield "hidden_act", config.hidden_act, "silu"
    yield "attention_bias", config.attention_bias, False
    yield "attn_output_gate", getattr(config, "attn_output_gate", True), True
    yield "rope_type", config.rope_parameters.get("rope_type", "default"), "default"


def _layers(config: PretrainedConfig) -> Iterator[Layer]:
    for index, kind in enumerate(config.layer_types):
        attends = kind == "full_attention"
        yield Layer(
            kind="full",
            owns_kv=attends,
            reads=index,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            intermediate=config.intermediate_size,
            recurrence=None if attends else GatedDeltaNet.recurrence(config),
        )


class RecurrentLayer(nn.Module):
    """A decoder layer without attention."""

    def __init__(self, config: PretrainedConfig, size: LayerSize, index: int) -> None:
        super().__init__()
        self.linear_attn = GatedDeltaNet(config, index)
        self.mlp = GatedMLP(size.hidden, size.intermediate, SiLU())
        self.input_layernorm = size.norm(size.hidden)
        self.post_attention_layernorm = size.norm(size.hidden)

    def forward(self, x: Tensor, recent: Recent, kv: KVAccess) -> Tensor:
        x = x + self.linear_attn(self.input_layernorm(x), recent, kv)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class HybridTrunk(Trunk):
    """A recurrent layer takes what all of them have in common in a call, the others RoPE and a mask."""

    def given(
        self,
        x: Tensor,
        per_layer: Tensor | None,
        positions: Tensor,
        mask: Tensor,
        kv: KVAccess,
        layers: range | None = None,
    ) -> list[tuple[Any, ...]]:
        g = self.geometry
        theta, fraction = g.rope["full"]
        size = next((layer.head_dim for layer in g.layers if layer.owns_kv), 0)
        rope = rotary(int(size * fraction), theta, 1.0, positions)
        full = additive_masks(mask, positions, 0, torch.arange(mask.shape[-1], dtype=torch.int32))["full"]
        recent = next((Recent.of(positions, kv, one, index) for index, one in g.recurrent.items()), None)
        return [(recent,) if layer.recurrence else (rope, full) for layer in g.layers]


def make_target(config: PretrainedConfig) -> Target:
    """Without weights."""
    geometry = geometry_of(config)
    size = LayerSize.of(config, qk_norm=True, gated=True, zero_centred=True)
    layers = (
        RecurrentLayer(config, size, index) if layer.recurrence else DecoderLayer(size, index)
        for index, layer in enumerate(geometry.layers)
    )
    return Target(HybridTrunk(geometry, layers))


def own_name(name: str, config: PretrainedConfig) -> str | None:
    if name.startswith(LEFT_OUT):
        return None
    return name.removeprefix("model.").removeprefix("language_model.")
