"""A native MTP head, written for export: one more decoder layer, trained with the target, that drafts.

The same arithmetic as transformers' `MtpLayer` over a layer of Mellum, Qwen3 or Llama, with static shapes and K/V as
explicit tensors. One row is one call's token and the hidden state before it:

    hidden of position p, after the target's final norm    what the head has of the past
    embedding of the token of position p + 1               the token that follows it
    -> state whose logits, by the target's head, are of the token of position p + 2

Row p of the head's K/V so belongs to row p of the target's, and `positions` count rows. transformers rotates by p + 1;
RoPE sees differences only, so every row may be shifted by one number, and only by one.

The rows that the target has verified hold K/V of the target's hidden states. A draft after the first has none: it is
fed the head's own last state and drafted token, in the rows after those, which the next verified rows overwrite. So
one call over the rows that a round has verified catches up and, in its last row, makes the next round's first draft.

Letters in shapes: T tokens of a call, S cache slots, D hidden size, H query heads, G KV heads, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pocketdraft.runtime.errors import PocketdraftError

from .attention import KVAccess, attend_grouped, rotary, rotate, split_heads
from .layers import GatedMLP, RMSNorm, SiLU, linear
from .masks import additive_masks, held_positions
from .mtp_config import MtpHeadsConfig


@dataclass(frozen=True)
class HeadGeometry:
    """All that the graphs need of a `MtpHeadsConfig`."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    qk_norm: bool
    window: int | None  # of sliding attention; None is full
    theta: float
    eps: float
    hidden_first: bool

    @staticmethod
    def from_config(config: MtpHeadsConfig) -> HeadGeometry:
        """Raises PocketdraftError for what the graph does not cover: biases, other activations, scaled RoPE."""
        rope = config.rope_parameters or {"rope_theta": 10000.0}
        kind, partial = rope.get("rope_type", "default"), rope.get("partial_rotary_factor", 1.0)
        if config.attention_bias or config.hidden_act != "silu" or kind != "default" or partial != 1.0:
            raise PocketdraftError(
                f"The MTP head has attention_bias={config.attention_bias}, activation {config.hidden_act}, RoPE {kind} "
                f"over {partial} of the head; pocketdraft exports those without bias, with silu and default RoPE over "
                "all of it."
            )
        return HeadGeometry(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            qk_norm=config.use_qk_norm,
            window=config.sliding_window,
            theta=rope["rope_theta"],
            eps=config.rms_norm_eps,
            hidden_first=config.mtp_hidden_states_first,
        )


class Attention(nn.Module):
    def __init__(self, geometry: HeadGeometry, index: int) -> None:
        super().__init__()
        self.geometry, self.index = geometry, index
        size = geometry.head_dim
        self.q_proj = linear(geometry.hidden, geometry.heads * size)
        self.k_proj = linear(geometry.hidden, geometry.kv_heads * size)
        self.v_proj = linear(geometry.hidden, geometry.kv_heads * size)
        self.o_proj = linear(geometry.heads * size, geometry.hidden)
        if geometry.qk_norm:
            self.q_norm, self.k_norm = RMSNorm(size, geometry.eps), RMSNorm(size, geometry.eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, kv: KVAccess) -> Tensor:
        size = self.geometry.head_dim
        query, key, value = (split_heads(project(x), size) for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.geometry.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = (rotate(heads.transpose(1, 2), *rope) for heads in (query, key))
        kv.write(self.index, key, value.transpose(1, 2))
        return self.o_proj(attend_grouped(query * size**-0.5, mask, kv, self.index))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    def __init__(self, geometry: HeadGeometry, index: int) -> None:
        super().__init__()
        self.self_attn = Attention(geometry, index)
        self.mlp = GatedMLP(geometry.hidden, geometry.intermediate, SiLU())
        self.input_layernorm = RMSNorm(geometry.hidden, geometry.eps)
        self.post_attention_layernorm = RMSNorm(geometry.hidden, geometry.eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, kv: KVAccess) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, kv)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class MtpHead(nn.Module):
    """One head. `index` is the layer whose K/V it writes and reads."""

    def __init__(self, geometry: HeadGeometry, index: int = 0) -> None:
        super().__init__()
        self.geometry, self.index = geometry, index
        hidden, eps = geometry.hidden, geometry.eps
        self.pre_fc_norm_embedding = RMSNorm(hidden, eps)
        self.pre_fc_norm_hidden = RMSNorm(hidden, eps)
        self.fc = linear(2 * hidden, hidden)
        self.layers = nn.ModuleList([DecoderLayer(geometry, index)])
        self.norm = RMSNorm(hidden, eps)

    def forward(self, embeddings: Tensor, hidden: Tensor, positions: Tensor, mask: Tensor, kv: KVAccess) -> Tensor:
        """The state for the target's head, and the `hidden` of the next draft: [1, T, D].

        `embeddings` [1, T, D] as the target's first layer gets them, `hidden` [1, T, D], `positions` int32 [T] of the
        rows, `mask` bool [1, 1, T, S]: row p sees rows 0..p.
        """
        g = self.geometry
        embedded, before = self.pre_fc_norm_embedding(embeddings), self.pre_fc_norm_hidden(hidden)
        x = self.fc(torch.cat([before, embedded] if g.hidden_first else [embedded, before], -1))
        held = held_positions(kv.read(self.index)[0].shape[2], mask.shape[-1], kv.last)
        masks = additive_masks(mask, positions, g.window or mask.shape[-1], held)
        rope = rotary(g.head_dim, g.theta, 1.0, positions)
        x = self.layers[0](x, rope, masks["sliding" if g.window else "full"], kv)
        return self.norm(x)  # type: ignore[no-any-return]
