"""Gemma 4's text target, written for export.

The same arithmetic as transformers' `modeling_gemma4.py`, with static shapes, K/V as explicit tensors and
parameter names equal to the checkpoint's, so that loading is a rename of prefixes. Batch is 1 throughout.
Letters in shapes: T tokens of a call, S cache slots, D hidden size, H query heads, G KV heads, d head size,
L layers, P per-layer embedding size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import Gemma4TextConfig

from pocketdraft.runtime.errors import PocketdraftError

from ..checkpoint import Checkpoint
from ..stored import Places
from .gemma4_moe import Experts, MixtureOfExperts, Router
from .layers import GELU, RMSNorm, linear
from .masks import Kind, additive_masks, held_positions


@dataclass(frozen=True)
class Layer:
    """Geometry of one decoder layer. It attends over the K/V of target layer `reads`: its own or an earlier one's."""

    kind: Kind
    owns_kv: bool
    reads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    v_is_k: bool


@dataclass(frozen=True)
class Geometry:
    """All that the graphs need of a `Gemma4TextConfig`."""

    vocab: int
    hidden: int
    heads: int
    layers: tuple[Layer, ...]
    per_layer: int
    window: int
    softcap: float | None
    eps: float
    rope: Mapping[Kind, tuple[float, float]]  # kind -> (theta, rotated fraction of the head)
    moe: MixtureOfExperts | None

    @staticmethod
    def from_config(config: Gemma4TextConfig, target: Geometry | None = None) -> Geometry:
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
        for kind in set(kinds):
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
            moe=MixtureOfExperts.from_config(config),
        )

    def last_owner(self, kind: Kind) -> int:
        """The layer whose K/V the KV-shared layers of this kind, and the drafter, read."""
        return max(i for i, layer in enumerate(self.layers) if layer.owns_kv and layer.kind == kind)


class KVAccess(Protocol):
    """How a graph reaches K/V: K is [1, G, S, d], V is [1, G, d, S] (transposed, as LiteRT-LM keeps it).

    `last`, int32 [1], is the last position that K/V holds once the call has written.
    """

    last: Tensor

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Stores new rows, [1, G, T, d] each, at the call's positions."""

    def read(self, layer: int) -> tuple[Tensor, Tensor]: ...

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention as the backend computes it best: query and result [1, G, R, d], additive mask [1, 1, R, S]."""


def rotary(head_dim: int, theta: float, fraction: float, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, [T, d]. "Proportional" RoPE: the angles beyond `fraction` are zero, the exponent keeps d."""
    rotated = int(fraction * head_dim // 2)
    inverse = 1.0 / (theta ** (torch.arange(0, 2 * rotated, 2, dtype=torch.float32) / head_dim))
    inverse = torch.cat([inverse, torch.zeros(head_dim // 2 - rotated)])
    angles = positions.to(torch.float32)[:, None] * inverse[None]
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies RoPE to x [1, heads, T, d]."""
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    return x * cos + torch.cat([-high, low], -1) * sin


class Attention(nn.Module):
    def __init__(self, geometry: Geometry, index: int) -> None:
        super().__init__()
        layer = geometry.layers[index]
        self.heads, self.layer = geometry.heads, layer
        self.index = index
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
        tokens, size = x.shape[1], self.layer.head_dim
        query = self._heads(self.q_norm(self._split(self.q_proj(x))), rope)
        if self.layer.owns_kv:
            raw = self._split(self.k_proj(x))
            value = raw if self.layer.v_is_k else self._split(self.v_proj(x))
            kv.write(self.index, self._heads(self.k_norm(raw), rope), self.v_norm(value).transpose(1, 2))
        keys, values = kv.read(self.layer.reads)
        # Grouped queries lie under their KV head as further rows: [1, G, (H / G) * T, d].
        groups = self.heads // keys.shape[1]
        query = query.reshape(1, keys.shape[1], groups * tokens, size)
        if tokens > 1:
            # LiteRT's repeat is a broadcast of eight dimensions: no GPU takes it, a CPU's verify is 1.8x as long.
            mask = torch.cat([mask] * groups, 2)
        # Gemma 4 scales neither queries nor scores: q_norm carries the temperature.
        mixed = kv.attend(query, keys, values, mask).reshape(1, self.heads, tokens, size)
        return self.o_proj(mixed.transpose(1, 2).reshape(1, tokens, self.heads * size))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(1, x.shape[1], -1, self.layer.head_dim)

    @staticmethod
    def _heads(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        return rotate(x.transpose(1, 2), *rope)


class MLP(nn.Module):
    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = linear(hidden, intermediate)
        self.up_proj = linear(hidden, intermediate)
        self.down_proj = linear(intermediate, hidden)
        self.activation: nn.Module = GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    def __init__(self, geometry: Geometry, index: int) -> None:
        super().__init__()
        hidden, eps = geometry.hidden, geometry.eps
        self.self_attn = Attention(geometry, index)
        self.mlp = MLP(hidden, geometry.layers[index].intermediate)
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


class Trunk(nn.Module):
    """Decoder layers and the final norm: embeddings [1, T, D] -> hidden state after the final norm [1, T, D]."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.layers = nn.ModuleList(DecoderLayer(geometry, i) for i in range(len(geometry.layers)))
        self.norm = RMSNorm(geometry.hidden, geometry.eps)
        if geometry.per_layer:
            self.per_layer_model_projection = linear(geometry.hidden, len(self.layers) * geometry.per_layer)
            self.per_layer_projection_norm = RMSNorm(geometry.per_layer, geometry.eps)

    def forward(self, x: Tensor, per_layer: Tensor | None, positions: Tensor, mask: Tensor, kv: KVAccess) -> Tensor:
        for layer, given in zip(self.layers, self.given(x, per_layer, positions, mask, kv), strict=True):
            x = layer(x, *given, kv)
        return self.norm(x)  # type: ignore[no-any-return]

    def given(
        self, x: Tensor, per_layer: Tensor | None, positions: Tensor, mask: Tensor, kv: KVAccess
    ) -> list[tuple[Tensor | None, tuple[Tensor, Tensor], Tensor]]:
        """What each layer takes besides the hidden state: its per-layer input, RoPE and mask."""
        g = self.geometry
        sliding = next((layer.reads for layer in g.layers if layer.kind == "sliding"), None)
        slots = mask.shape[-1] if sliding is None else kv.read(sliding)[0].shape[2]
        masks = additive_masks(mask, positions, g.window, held_positions(slots, mask.shape[-1], kv.last))
        sizes = {layer.kind: layer.head_dim for layer in g.layers}
        ropes = {kind: rotary(size, *g.rope[kind], positions) for kind, size in sizes.items()}
        if per_layer is not None:
            projected = self.per_layer_model_projection(x) * g.hidden**-0.5
            projected = self.per_layer_projection_norm(projected.reshape(per_layer.shape))
            per_layer = (projected + per_layer) * 2.0**-0.5
        own = [None if per_layer is None else per_layer[:, :, index] for index in range(len(self.layers))]
        return [(own[i], ropes[layer.kind], masks[layer.kind]) for i, layer in enumerate(g.layers)]


class Target(nn.Module):
    """The target: trunk, head and embedding tables, which ship as graphs of their own."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.trunk = Trunk(geometry)
        self.embed_tokens = nn.Embedding(geometry.vocab, geometry.hidden)
        self.lm_head = linear(geometry.hidden, geometry.vocab)
        if geometry.per_layer:
            self.embed_tokens_per_layer = nn.Embedding(geometry.vocab, len(geometry.layers) * geometry.per_layer)


def load_target(checkpoint: Checkpoint) -> tuple[Target, Places]:
    """The target with its large weights on the meta device, and where they lie."""
    with torch.device("meta"):
        target = Target(Geometry.from_config(checkpoint.text_config))
    stored = checkpoint.load_into(target, tied={"lm_head.weight": "embed_tokens.weight"})
    return target.eval(), stored
