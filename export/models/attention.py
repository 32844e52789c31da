"""What families' attention is made of: K/V, rotary embeddings, and grouped queries over them.

Batch is 1 throughout. Letters in shapes: T tokens of a call, S cache slots, H query heads, G KV heads, d head size,
R query rows under a KV head.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class KVAccess(Protocol):
    """How a graph reaches K/V: K is [1, G, S, d], V is [1, G, d, S] (transposed, as LiteRT-LM keeps it).

    `last`, int32 [1], is the last position that K/V holds once the call has written. `widest` is the most tokens of a
    call, where their number is symbolic. A recurrent layer's memory is a state and the rows of the last tokens (see
    `delta_net.py`), all settled up to the position `settled`, int32 [1].
    """

    last: Tensor
    widest: int

    @property
    def settled(self) -> Tensor: ...

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Stores new rows, [1, G, T, d] each, at the call's positions."""

    def read(self, layer: int) -> tuple[Tensor, Tensor]: ...

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention as the backend computes it best: query and result [1, G, R, d], additive mask [1, 1, R, S]."""

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b^T over the last two of four dimensions, as the backend computes it best."""

    def memory(self, layer: int) -> tuple[Tensor, Tensor]: ...

    def remember(self, layer: int, state: Tensor, rows: Tensor) -> None: ...

    def settle(self, position: Tensor) -> None: ...


def rotary(head_dim: int, theta: float, fraction: float, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, [T, d]. "Proportional" RoPE: the angles beyond `fraction` are zero, the exponent keeps d."""
    rotated = int(fraction * head_dim // 2)
    inverse = 1.0 / (theta ** (torch.arange(0, 2 * rotated, 2, dtype=torch.float32) / head_dim))
    inverse = torch.cat([inverse, torch.zeros(head_dim // 2 - rotated)])
    angles = positions.to(torch.float32)[:, None] * inverse[None]
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies RoPE to x [1, heads, T, d], or to its first dimensions where cos and sin [T, r] are of no more."""
    if (turned := cos.shape[-1]) < x.shape[-1]:
        return torch.cat([rotate(x[..., :turned], cos, sin), x[..., turned:]], -1)
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    return x * cos + torch.cat([-high, low], -1) * sin


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """[1, T, heads * d] -> [1, T, heads, d]."""
    return x.reshape(1, x.shape[1], -1, head_dim)


def attend_grouped(query: Tensor, mask: Tensor, kv: KVAccess, layer: int) -> Tensor:
    """Queries [1, H, T, d] over the K/V of `layer`: [1, T, H * d]. The additive mask is [1, 1, T, S].

    Scores are not scaled: the query carries what a family scales them by.
    """
    _, heads, tokens, size = query.shape
    keys, values = kv.read(layer)
    # Grouped queries lie under their KV head as further rows: [1, G, (H / G) * T, d].
    groups = heads // keys.shape[1]
    query = query.reshape(1, keys.shape[1], groups * tokens, size)
    if tokens > 1:
        # LiteRT's repeat is a broadcast of eight dimensions: no GPU takes it, a CPU's verify is 1.8x as long.
        mask = torch.cat([mask] * groups, 2)
    mixed = kv.attend(query, keys, values, mask).reshape(1, heads, tokens, size)
    return mixed.transpose(1, 2).reshape(1, tokens, heads * size)
