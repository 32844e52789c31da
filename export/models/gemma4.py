"""Gemma 4's text target, written for export.

The same arithmetic as transformers' `modeling_gemma4.py`, with static shapes and K/V as explicit tensors. Batch is 1
throughout. Letters in shapes are those of `decoder.py` and `attention.py`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Gemma4TextConfig

from pocketdraft.runtime.errors import PocketdraftError

from . import decoder
from .attention import KVAccess, attend_grouped, rotate, split_heads
from .decoder import Layer, Target
from .gemma4_moe import Experts, MixtureOfExperts, Router
from .layers import GELU, GatedMLP, RMSNorm, linear
from .masks import Kind

MODEL_TYPES = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")
# A fused Gemma4ForConditionalGeneration keeps its text model one level deeper, beside the other modalities.
PREFIX = re.compile(r"^model\.(language_model\.)?")
OTHER_MODALITIES = re.compile(r"^model\.(vision_tower|audio_tower|embed_vision|embed_audio|vision_embedder)\.")
KV_WEIGHT = re.compile(r"^layers\.(\d+)\.self_attn\.(k_proj|v_proj|k_norm)\.weight$")


@dataclass(frozen=True, kw_only=True)
class Geometry(decoder.Geometry):
    """`moe` is None for a dense model."""

    moe: MixtureOfExperts | None

    @staticmethod
    def from_config(config: Gemma4TextConfig, target: decoder.Geometry | None = None) -> Geometry:
        """A target's geometry, or its drafter's if `target` is given: a drafter's layers read the target's K/V.

        Raises PocketdraftError for what the graphs do not cover (biases, other activations).
        """
        if config.attention_bias or config.hidden_activation != "gelu_pytorch_tanh":
            raise PocketdraftError(
                f"The checkpoint has attention_bias={config.attention_bias} and activation {config.hidden_activation}; "
                "Gemma 4 has neither bias nor another activation than gelu_pytorch_tanh."
            )
        kinds: list[Kind] = ["sliding" if name == "sliding_attention" else "full" for name in config.layer_types]
        first_shared = len(kinds) - (config.num_kv_shared_layers or 0)
        layers = []
        for index, kind in enumerate(kinds):
            own = config.per_layer_config[index]
            shared = index >= first_shared
            wide = 2 if shared and config.use_double_wide_mlp else 1
            donor = target.last_owner(kind) if target else max(i for i in range(first_shared) if kinds[i] == kind)
            layers.append(
                Layer(
                    kind=kind,
                    owns_kv=not shared,
                    reads=donor if shared else index,
                    kv_heads=own.num_key_value_heads,
                    head_dim=own.head_dim,
                    intermediate=config.intermediate_size * wide,
                    v_is_k=config.attention_k_eq_v and kind == "full",
                )
            )
        rope: dict[Kind, tuple[float, float]] = {}
        for kind in sorted(set(kinds)):
            parameters = config.rope_parameters[f"{kind}_attention"]
            rope[kind] = (parameters["rope_theta"], parameters.get("partial_rotary_factor", 1.0))
        return Geometry(
            vocab=config.vocab_size,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            layers=tuple(layers),
            per_layer=getattr(config, "hidden_size_per_layer_input", 0) or 0,  # 12B's has none
            window=config.sliding_window,
            softcap=config.final_logit_softcapping,
            eps=config.rms_norm_eps,
            rope=rope,
            embedding_scale=math.sqrt(config.hidden_size),
            moe=MixtureOfExperts.from_config(config),
        )


class Attention(nn.Module):
    def __init__(self, geometry: Geometry, index: int) -> None:
        super().__init__()
        layer = geometry.layers[index]
        self.layer, self.index = layer, index
        self.q_proj = linear(geometry.hidden, geometry.heads * layer.head_dim)
        self.q_norm = RMSNorm(layer.head_dim, geometry.eps)
        self.o_proj = linear(geometry.heads * layer.head_dim, geometry.hidden)
        if layer.owns_kv:
            self.k_proj = linear(geometry.hidden, layer.kv_heads * layer.head_dim)
            self.k_norm = RMSNorm(layer.head_dim, geometry.eps)
            self.v_norm = RMSNorm(layer.head_dim, geometry.eps, scaled=False)
            if not layer.v_is_k:
                self.v_proj = linear(geometry.hidden, layer.kv_heads * layer.head_dim)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, kv: KVAccess) -> Tensor:
        query = self._heads(self.q_norm(self._split(self.q_proj(x))), rope)
        if self.layer.owns_kv:
            self.remember(x, rope, kv)
        # Gemma 4 scales neither queries nor scores: q_norm carries the temperature.
        return self.o_proj(attend_grouped(query, mask, kv, self.layer.reads))  # type: ignore[no-any-return]

    def remember(self, x: Tensor, rope: tuple[Tensor, Tensor], kv: KVAccess) -> None:
        """Writes K/V of x [1, T, D]."""
        raw = self._split(self.k_proj(x))
        value = raw if self.layer.v_is_k else self._split(self.v_proj(x))
        kv.write(self.index, self._heads(self.k_norm(raw), rope), self.v_norm(value).transpose(1, 2))

    def _split(self, x: Tensor) -> Tensor:
        return split_heads(x, self.layer.head_dim)

    @staticmethod
    def _heads(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        return rotate(x.transpose(1, 2), *rope)


class DecoderLayer(nn.Module):
    def __init__(self, geometry: Geometry, index: int) -> None:
        super().__init__()
        hidden, eps = geometry.hidden, geometry.eps
        self.self_attn = Attention(geometry, index)
        self.mlp = GatedMLP(hidden, geometry.layers[index].intermediate, GELU())
        self.input_layernorm = RMSNorm(hidden, eps)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.pre_feedforward_layernorm = RMSNorm(hidden, eps)
        self.post_feedforward_layernorm = RMSNorm(hidden, eps)
        self.layer_scalar = nn.Parameter(torch.empty(1))
        self.has_experts = geometry.moe is not None
        if geometry.moe:
            self.router = Router(hidden, geometry.moe, eps)
            self.experts = Experts(hidden, geometry.moe)
            self.post_feedforward_layernorm_1 = RMSNorm(hidden, eps)
            self.post_feedforward_layernorm_2 = RMSNorm(hidden, eps)
            self.pre_feedforward_layernorm_2 = RMSNorm(hidden, eps)
        if geometry.per_layer:
            self.per_layer_input_gate = linear(hidden, geometry.per_layer)
            self.per_layer_activation = GELU()
            self.per_layer_projection = linear(geometry.per_layer, hidden)
            self.post_per_layer_input_norm = RMSNorm(hidden, eps)

    def forward(
        self, x: Tensor, per_layer: Tensor | None, rope: tuple[Tensor, Tensor], mask: Tensor, kv: KVAccess
    ) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), rope, mask, kv))
        x = x + self.post_feedforward_layernorm(self._feed_forward(x))
        if per_layer is not None:
            gated = self.per_layer_activation(self.per_layer_input_gate(x)) * per_layer
            x = x + self.post_per_layer_input_norm(self.per_layer_projection(gated))
        return x * self.layer_scalar

    def _feed_forward(self, x: Tensor) -> Tensor:
        dense: Tensor = self.mlp(self.pre_feedforward_layernorm(x))
        if not self.has_experts:
            return dense
        mixed = self.experts(self.pre_feedforward_layernorm_2(x)[0], *self.router(x[0]))[None]
        return self.post_feedforward_layernorm_1(dense) + self.post_feedforward_layernorm_2(mixed)  # type: ignore[no-any-return]


class Trunk(decoder.Trunk):
    """With what 2B's kind feeds each layer of a token besides: its per-layer embedding."""

    geometry: Geometry

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry, (DecoderLayer(geometry, i) for i in range(len(geometry.layers))))
        if geometry.per_layer:
            self.per_layer_model_projection = linear(geometry.hidden, len(self.layers) * geometry.per_layer)
            self.per_layer_projection_norm = RMSNorm(geometry.per_layer, geometry.eps)

    @property
    def preparing(self) -> list[nn.Module]:
        return [self.per_layer_model_projection] if self.geometry.per_layer else []

    def given(
        self,
        x: Tensor,
        per_layer: Tensor | None,
        positions: Tensor,
        mask: Tensor,
        kv: KVAccess,
        layers: range | None = None,
    ) -> list[tuple[Any, ...]]:
        """What each layer takes besides the hidden state: its per-layer input, RoPE and mask."""
        given = super().given(x, None, positions, mask, kv, layers)
        if per_layer is None:
            return [(None, *one) for one in given]
        projected = self.per_layer_model_projection(x) * self.geometry.hidden**-0.5
        projected = self.per_layer_projection_norm(projected.reshape(per_layer.shape))
        per_layer = (projected + per_layer) * 2.0**-0.5
        return [(per_layer[:, :, index], *one) for index, one in enumerate(given)]


def make_target(config: Gemma4TextConfig) -> Target:
    """Without weights."""
    return Target(Trunk(Geometry.from_config(config)))


def own_name(name: str, config: Gemma4TextConfig) -> str | None:
    """KV-shared layers have K/V weights in some checkpoints, which nothing reads; nor does it other modalities."""
    own = PREFIX.sub("", name)
    kv = KV_WEIGHT.match(own)
    unused = kv and int(kv[1]) >= config.num_hidden_layers - (config.num_kv_shared_layers or 0)
    return None if unused or OTHER_MODALITIES.match(name) else own
