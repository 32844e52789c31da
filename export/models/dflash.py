"""A DFlash drafter (`MuseGlimmerAssistantModel`; arXiv 2602.06036), written for export.

The same arithmetic as transformers' `modeling_muse_glimmer_assistant.py`, with static shapes and explicit K/V, and
parameter names equal to the checkpoint's. It has neither embeddings nor a head: it takes the target's. A block is one
known token, the anchor, and masks; one pass denoises it whole. Batch is 1 throughout.
Letters in shapes: W tokens of a context call, B tokens of a block, S cache slots, D hidden size, H query heads, G KV
heads, d head size, n tapped layers of the target.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import MuseGlimmerAssistantConfig

from pocketdraft.runtime.errors import PocketdraftError

from .attention import KVAccess, rotary
from .layers import RMSNorm, linear
from .llama_layer import DecoderLayer, LayerSize
from .masks import MASKED, Kind, held_positions, visible

KINDS: dict[str, Kind] = {"full_attention": "full", "sliding_attention": "sliding"}


@dataclass(frozen=True)
class DFlashGeometry:
    """All that the graphs need of a `MuseGlimmerAssistantConfig`."""

    size: LayerSize
    kinds: tuple[Kind, ...]  # of each layer
    window: int
    theta: float
    taps: tuple[int, ...]  # the target's layers whose outputs are the context, from 0
    block: int
    mask_token: int

    @staticmethod
    def from_config(config: MuseGlimmerAssistantConfig) -> DFlashGeometry:
        """Raises PocketdraftError for what the graphs do not cover: other activations, rotary variants, attentions."""
        rope = config.rope_parameters
        if config.hidden_act != "silu":
            raise PocketdraftError(
                f"The DFlash drafter has activation {config.hidden_act}; pocketdraft exports those with silu only."
            )
        if rope["rope_type"] != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise PocketdraftError(
                f"The DFlash drafter has rope_parameters {rope}; pocketdraft exports the default rope_type over whole "
                "heads only."
            )
        unknown = sorted(set(config.layer_types) - set(KINDS))
        if unknown:
            raise PocketdraftError(
                f"The DFlash drafter has layers of {', '.join(unknown)}; pocketdraft exports {' and '.join(KINDS)} "
                "only."
            )
        size = LayerSize.of(config, qk_norm=True)
        return DFlashGeometry(
            size=size,
            kinds=tuple(KINDS[name] for name in config.layer_types),
            window=config.sliding_window,
            theta=rope["rope_theta"],
            taps=tuple(config.target_layer_ids),
            block=config.block_size,
            mask_token=config.mask_token_id,
        )


class ContextProjection(nn.Module):
    """The target's tapped hidden states, side by side, to the drafter's hidden size: [1, W, n * D] -> [1, W, D]."""

    def __init__(self, geometry: DFlashGeometry) -> None:
        super().__init__()
        self.fc = linear(len(geometry.taps) * geometry.size.hidden, geometry.size.hidden)
        self.output_norm_enc = RMSNorm(geometry.size.hidden, geometry.size.eps)

    def forward(self, taps: Tensor) -> Tensor:
        return self.output_norm_enc(self.fc(taps))  # type: ignore[no-any-return]


class DFlash(nn.Module):
    """The drafter. Its K/V of committed tokens comes from the target's taps, and only that stays.

    A round is `context` over the tokens that the target has just committed, then `draft`. What `draft` writes is
    scratch: the next round's `context` begins where the block began, and masks must not show what is left behind it.
    """

    def __init__(self, geometry: DFlashGeometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.encoder = ContextProjection(geometry)
        self.layers = nn.ModuleList(DecoderLayer(geometry.size, index) for index in range(len(geometry.kinds)))
        self.norm = RMSNorm(geometry.size.hidden, geometry.size.eps)

    def context(self, taps: Tensor, positions: Tensor, kv: KVAccess) -> None:
        """Writes every layer's K/V of committed tokens. taps [1, W, n * D] in the order of `taps`, positions int32 [W].

        Taps are the outputs of the target's layers, before any final norm.
        """
        projected, rope = self.encoder(taps), self._rope(positions)
        for layer in self.layers:
            layer.self_attn.remember(projected, rope, kv)  # type: ignore[union-attr, operator]

    def draft(self, embeddings: Tensor, positions: Tensor, mask: Tensor, kv: KVAccess) -> Tensor:
        """The state before the target's head, [1, B, D]. Row k > 0 drafts the token at its own position.

        embeddings [1, B, D] are the target's, scaled as the target scales them: of the anchor and of masks. positions,
        int32 [B], follow the committed tokens. mask, bool [1, 1, B, S] by position, is True for all committed tokens
        and for the whole block.
        """
        rope, masks = self._rope(positions), self._masks(mask, positions, kv)
        x = embeddings
        for layer, kind in zip(self.layers, self.geometry.kinds, strict=True):
            x = layer(x, rope, masks[kind], kv)
        return self.norm(x)  # type: ignore[no-any-return]

    def _rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return rotary(self.geometry.size.head_dim, self.geometry.theta, 1.0, positions)

    def _masks(self, mask: Tensor, positions: Tensor, kv: KVAccess) -> dict[Kind, Tensor]:
        """Additive masks by attention kind. A sliding layer sees as far forward as backward, `window` included."""
        zero, masked = torch.tensor(0.0), torch.tensor(MASKED)
        masks: dict[Kind, Tensor] = {"full": torch.where(mask, zero, masked)}
        if "sliding" in self.geometry.kinds:
            slots = kv.read(self.geometry.kinds.index("sliding"))[0].shape[2]
            held = held_positions(slots, mask.shape[-1], kv.last)
            near = (held[None] - positions[:, None]).abs() <= self.geometry.window
            masks["sliding"] = torch.where(visible(mask, held) & near[None, None], zero, masked)
        return masks
