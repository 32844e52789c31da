"""What attention may see: the runtime's mask, by kind of layer, and a sliding layer's ring."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["full", "sliding"]

# Finite, so that a row with nothing visible stays a number, and far below any score.
MASKED = -1e9


def held_positions(slots: int, context: int, last: Tensor) -> Tensor:
    """Which position each slot of a sliding layer holds, int32 [slots]; negative where none.

    With fewer slots than the context it is a ring that was written up to position `last`, int32 [1].
    """
    index = torch.arange(slots, dtype=torch.int32)
    return index if slots == context else last - torch.remainder(last - index, slots)


def visible(mask: Tensor, held: Tensor) -> Tensor:
    """What the runtime lets be seen, bool [1, 1, T, context], by slot of a sliding layer: [1, 1, T, slots]."""
    if len(held) == mask.shape[-1]:
        return mask
    seen = mask.index_select(-1, torch.maximum(held, torch.tensor(0, dtype=torch.int32)))
    return seen & (held >= 0)[None, None, None]


def additive_masks(mask: Tensor, positions: Tensor, window: int, held: Tensor) -> dict[Kind, Tensor]:
    """From what the runtime lets be seen (bool [1, 1, T, context]) to additive masks by attention kind.

    A sliding layer sees position s from p if p - window < s; the runtime's mask bounds s from above.
    """
    near = held[None, :] > (positions[:, None] - window)
    zero, masked = torch.tensor(0.0), torch.tensor(MASKED)
    return {
        "full": torch.where(mask, zero, masked),
        "sliding": torch.where(visible(mask, held) & near[None, None], zero, masked),
    }
