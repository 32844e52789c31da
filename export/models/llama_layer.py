"""The decoder layer of Llama's kind, which drafters are built of as well: norms before, SwiGLU, grouped queries.

Parameters have transformers' names. Letters in shapes are those of `attention.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from .attention import KVAccess, attend_grouped, rotate, split_heads
from .layers import GatedMLP, RMSNorm, SiLU, linear


@dataclass(frozen=True)
class LayerSize:
    """`qk_norm` says that queries and keys of each head are normed, `gated` that a gate beside each head's query is
    what its attention is multiplied by, `zero_centred` that all norms are (see `RMSNorm`): Qwen3.5 has all three."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    qk_norm: bool
    gated: bool = False
    zero_centred: bool = False

    @staticmethod
    def of(config: PretrainedConfig, qk_norm: bool, gated: bool = False, zero_centred: bool = False) -> LayerSize:
        return LayerSize(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            eps=config.rms_norm_eps,
            qk_norm=qk_norm,
            gated=gated,
            zero_centred=zero_centred,
        )

    def norm(self, size: int) -> RMSNorm:
        return RMSNorm(size, self.eps, zero_centred=self.zero_centred)


class Attention(nn.Module):
    """`index` is the layer whose K/V it writes and reads."""

    def __init__(self, size: LayerSize, index: int) -> None:
        super().__init__()
        self.index, self.head_dim, self.scale = index, size.head_dim, size.head_dim**-0.5
        self.gated = size.gated
        self.q_proj = linear(size.hidden, size.heads * size.head_dim * (2 if size.gated else 1))
        self.k_proj = linear(size.hidden, size.kv_heads * size.head_dim)
        self.v_proj = linear(size.hidden, size.kv_heads * size.head_dim)
        self.o_proj = linear(size.heads * size.head_dim, size.hidden)
        self.q_norm = size.norm(size.head_dim) if size.qk_norm else nn.Identity()
        self.k_norm = size.norm(size.head_dim) if size.qk_norm else nn.Identity()

    def remember(self, x: Tensor, rope: tuple[Tensor, Tensor], kv: KVAccess) -> None:
        """Writes K/V of x [1, T, D]."""
        key = rotate(self.k_norm(split_heads(self.k_proj(x), self.head_dim)).transpose(1, 2), *rope)
        kv.write(self.index, key, split_heads(self.v_proj(x), self.head_dim).transpose(1, 2))

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, kv: KVAccess) -> Tensor:
        """[1, T, D] -> [1, T, D] under the additive mask [1, 1, T, S]."""
        self.remember(x, rope, kv)
        projected = self.q_proj(x)
        if self.gated:
            by_head = split_heads(projected, 2 * self.head_dim)
            projected, gate = (half.reshape(1, x.shape[1], -1) for half in by_head.chunk(2, -1))
        query = rotate(self.q_norm(split_heads(projected, self.head_dim)).transpose(1, 2), *rope)
        mixed = attend_grouped(query * self.scale, mask, kv, self.index)
        return self.o_proj(mixed * torch.sigmoid(gate) if self.gated else mixed)  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    def __init__(self, size: LayerSize, index: int) -> None:
        super().__init__()
        self.self_attn = Attention(size, index)
        self.mlp = GatedMLP(size.hidden, size.intermediate, SiLU())
        self.input_layernorm = size.norm(size.hidden)
        self.post_attention_layernorm = size.norm(size.hidden)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, kv: KVAccess) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, kv)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]
