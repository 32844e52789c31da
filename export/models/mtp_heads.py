"""Native MTP heads, written for export: decoder layers more, trained with the target, that draft.

The same arithmetic as transformers' `MtpLayer` over a layer of Mellum, Qwen3, Qwen3.5 (one of attention) or Llama, with
static shapes and K/V as explicit tensors. One row is one call's token and the hidden state before it:

    hidden of position p, after the target's final norm    what the head has of the past
    embedding of the token of position p + 1               the token that follows it
    -> state whose logits, by the target's head, are of the token of position p + 2

Row p of the head's K/V so belongs to row p of the target's, and `positions` count rows. transformers rotates by p + 1;
RoPE sees differences only, so every row may be shifted by one number, and only by one.

The rows that the target has verified hold K/V of the target's hidden states. A draft after the first has none: it is
fed the head's own last state and drafted token, in the rows after those, which the next verified rows overwrite. So
one call over the rows that a round has verified catches up and, in its last row, makes the next round's first draft.

Where there are several, head k > 0 is fed head k - 1's state of row p beside the embedding of the token of position
p + 1 + k, and has K/V of its own for the same rows: it is turned by p as well.

Letters in shapes: T tokens of a call, S cache slots, D hidden size, H query heads, G KV heads, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pocketdraft.runtime.errors import PocketdraftError

from .attention import KVAccess, rotary
from .layers import linear
from .llama_layer import DecoderLayer, LayerSize
from .masks import additive_masks, held_positions
from .mtp_config import MtpHeadsConfig


@dataclass(frozen=True)
class HeadGeometry:
    """All that the graphs need of a `MtpHeadsConfig`."""

    size: LayerSize
    window: int | None  # of sliding attention; None is full
    theta: float
    turned: int  # dimensions of a head that RoPE turns
    hidden_first: bool
    vocab: int
    draft_vocab: int  # tokens that it drafts; 0 is all of them, by the target's head

    @staticmethod
    def from_config(config: MtpHeadsConfig) -> HeadGeometry:
        """Raises PocketdraftError for what the graph does not cover: biases, other activations, scaled RoPE."""
        rope = config.rope_parameters or {"rope_theta": 10000.0}
        kind = rope.get("rope_type", "default")
        if config.attention_bias or config.hidden_act != "silu" or kind != "default":
            raise PocketdraftError(
                f"The MTP head has attention_bias={config.attention_bias}, activation {config.hidden_act}, RoPE "
                f"{kind}; pocketdraft exports those without bias, with silu and default RoPE."
            )
        size = LayerSize.of(
            config, qk_norm=config.use_qk_norm, gated=config.attn_output_gate, zero_centred=config.zero_centred_norms
        )
        return HeadGeometry(
            size=size,
            window=config.sliding_window,
            theta=rope["rope_theta"],
            turned=int(config.head_dim * rope.get("partial_rotary_factor", 1.0)),
            hidden_first=config.mtp_hidden_states_first,
            vocab=config.vocab_size,
            draft_vocab=config.draft_vocab_size or 0,
        )


class MtpHead(nn.Module):
    """One head. `index` is the layer whose K/V it writes and reads."""

    def __init__(self, geometry: HeadGeometry, index: int = 0) -> None:
        super().__init__()
        self.geometry, self.index = geometry, index
        hidden, norm = geometry.size.hidden, geometry.size.norm
        self.pre_fc_norm_embedding = norm(hidden)
        self.pre_fc_norm_hidden = norm(hidden)
        self.fc = linear(2 * hidden, hidden)
        self.layers = nn.ModuleList([DecoderLayer(geometry.size, index)])
        self.norm = norm(hidden)
        if geometry.draft_vocab:
            self.lm_head = linear(hidden, geometry.draft_vocab)
            self.token_rows = nn.Parameter(torch.empty(geometry.vocab, dtype=torch.int64), requires_grad=False)

    def logits(self, state: Tensor) -> Tensor:
        """By a head of its own: [1, 1, D] -> [1, 1, V], the tokens that it has no row for below all others."""
        scores = self.lm_head(state)[0, 0]
        known = torch.cat([scores, scores.amin(-1, keepdim=True) - 1.0])
        return known.index_select(0, self.token_rows.to(torch.int32))[None, None]

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
        rope = rotary(g.turned, g.theta, 1.0, positions)
        x = self.layers[0](x, rope, masks["sliding" if g.window else "full"], kv)
        return self.norm(x)  # type: ignore[no-any-return]


class MtpHeads(nn.Module):
    """Several, of one shape: head k drafts the token after head k - 1's."""

    def __init__(self, geometry: HeadGeometry, count: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList([MtpHead(geometry, index) for index in range(count)])
