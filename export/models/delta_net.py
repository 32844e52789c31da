"""A gated delta rule, written for export: linear attention whose memory is a state that each token changes.

The same arithmetic as `Qwen3_5GatedDeltaNet` in transformers' `modeling_qwen3_5.py` (Gated DeltaNet, arXiv 2412.06464),
with static shapes and its memory as explicit tensors. A token of key k, value v, decay e^g and step b turns the state:

    S <- e^g S + b (v - e^g S k) k^T        and its query q reads S q

A verify must be able to take tokens back, and a state, unlike K/V, forgets nothing. So it stays `back` tokens behind
the furthest call, as of the position `settled`; what the layer was given of the tokens after it (their rows, before
the convolution) is kept beside it. Each call runs these rows again before its own, as one block of the chunked form,
then moves the state on to `back` tokens before its end. Rows before `settled` are already in the state and do nothing.
A call may start anywhere from `settled` on, or at 0, where everything begins anew: nothing tells the graph how many
drafts were accepted, its first position does.

Each tensor of the memory is read by one operator, and what is written depends on what was read: a runtime may give
input and output one buffer.

Letters in shapes: T tokens of a call, B = `back`, N = B + T, W tokens before one that the convolution reads, C channels
of the convolution, R = C + 2 H numbers a row, D hidden size, G key heads, H value heads, K and V their sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from .attention import KVAccess
from .decoder import Recurrence
from .layers import RMSNorm, SiLU, linear

L2_EPS = 1e-6


@dataclass(frozen=True)
class Recent:
    """What all recurrent layers of a call have in common: where its tokens lie, and those that were not settled."""

    back: int
    before: Tensor  # float32 [1, 1, B + W, B + W]: takes of the kept rows those that come before the call's
    kept: Tensor  # float32 [1, 1, B + W, B + W + T]: of those and the call's own, what is kept for the next
    told: Tensor  # float32 [1, B + W + T, 1]: 1 where there is such a token at all
    live: Tensor  # float32 [1, 1, N]: 1 where the state does not hold it yet
    settles: Tensor  # float32 [1, 1, N]: 1 where the state that is kept will
    goes_on: Tensor  # float32 [1, 1, 1, 1]: 0 where a sequence begins
    order: Order

    @staticmethod
    def of(positions: Tensor, kv: KVAccess, recurrence: Recurrence, layer: int) -> Recent:
        """Moves what `kv` has settled on. `layer` is one of those whose memory it is."""
        before, (start, tokens) = recurrence.before, (positions[:1], positions.shape[0])
        back = kv.memory(layer)[1].shape[1] - before
        # Neither changes a position that a runtime may call at; a sequence that begins finds nothing settled.
        settled = torch.clamp(torch.minimum(kv.settled, start), min=0)
        after = torch.maximum(settled, start + (tokens - back))
        kv.settle(after)
        first = start - (back + before)  # position of the first row that is looked at
        index = torch.arange(back + before, dtype=torch.int32)
        rows = first + torch.arange(back + before + tokens, dtype=torch.int32)
        last = back + before - 1
        own = rows[before:]
        return Recent(
            back=back,
            before=_choice(index + (start - settled - back), last + 1),
            kept=_choice(index + (after - before - first), last + 1 + tokens),
            told=_ones(rows >= 0).reshape(1, -1, 1),
            live=_ones(own >= settled).reshape(1, 1, -1),
            settles=_ones(own < after).reshape(1, 1, -1),
            goes_on=_ones(start > 0).reshape(1, 1, 1, 1),
            order=Order.of(own.shape[0], back + kv.widest),
        )


@dataclass(frozen=True)
class Order:
    """Masks over N rows, float32 [1, 1, N, N]: `upto` has 1 where the column's token does not come after the row's,
    `earlier` where it comes before. `blocks` are for `inverse`."""

    upto: Tensor
    earlier: Tensor
    blocks: tuple[Tensor, ...]

    @staticmethod
    def of(rows: int, most: int) -> Order:
        """`rows` may be symbolic, and are never more than `most`."""
        index = torch.arange(rows, dtype=torch.int32)
        row, column = index[:, None], index[None]
        return Order(_ones(column <= row)[None, None], _ones(column < row)[None, None], tuple(_blocks(index, most)))


def _blocks(index: Tensor, most: int) -> Iterator[Tensor]:
    """By size 1, 2, 4...: where the row lies in the second block of a pair and the column in its first."""
    size = 1
    while size < most:
        block = torch.div(index, size, rounding_mode="floor")
        odd = torch.remainder(block, 2)
        yield (_ones(block[:, None] == block[None] + 1) * odd[:, None].to(torch.float32))[None, None]
        size *= 2


def _choice(rows: Tensor, count: int) -> Tensor:
    """A product with it takes these of so many rows, nothing where there is none such: a gather, where delegates have
    none. float32 [1, 1, len(rows), count]"""
    return _ones(rows[:, None] == torch.arange(count, dtype=torch.int32)[None])[None, None]


def _ones(where: Tensor) -> Tensor:
    return torch.where(where, torch.tensor(1.0), torch.tensor(0.0))


def inverse(lower: Tensor, order: Order, kv: KVAccess) -> Tensor:
    """(I + lower)^-1 of a strictly lower triangular [1, H, N, N].

    Blocks of twice the size at each step: that of [[A, 0], [B, D]] is [[A^-1, 0], [-D^-1 B A^-1, D^-1]]. No power of
    the matrix is made, which grow beyond all bounds where tokens are alike.
    """
    first, *others = order.blocks
    found = (order.upto - order.earlier) - lower * first
    for block in others:
        below = kv.product(found, (lower * block).transpose(-1, -2))
        found = found - kv.product(below, found.transpose(-1, -2))
    return found


class Convolution(nn.Module):
    """Depthwise over time, as `torch.nn.Conv1d` keeps it."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """[1, W + N, C] -> [1, N, C]"""
        width = self.weight.shape[-1]
        count = x.shape[1] - (width - 1)
        taps = [x[:, tap : tap + count] * self.weight[:, 0, tap] for tap in range(width)]
        return sum(taps[1:], taps[0])


class GatedDeltaNet(nn.Module):
    """`index` is the layer whose memory it has."""

    def __init__(self, config: PretrainedConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.key_heads, self.heads = config.linear_num_key_heads, config.linear_num_value_heads
        self.key_dim, self.value_dim = config.linear_key_head_dim, config.linear_value_head_dim
        self.keys, self.values = self.key_heads * self.key_dim, self.heads * self.value_dim
        self.channels = 2 * self.keys + self.values
        self.in_proj_qkv = linear(config.hidden_size, self.channels)
        self.in_proj_z = linear(config.hidden_size, self.values)
        self.in_proj_b = linear(config.hidden_size, self.heads)
        self.in_proj_a = linear(config.hidden_size, self.heads)
        self.conv1d = Convolution(self.channels, config.linear_conv_kernel_dim)
        self.A_log, self.dt_bias = (nn.Parameter(torch.empty(self.heads)) for _ in range(2))
        # x / sqrt(sum(x^2) + eps) is a norm by the mean, times a power of the size.
        self.unit = RMSNorm(self.key_dim, L2_EPS / self.key_dim, scaled=False)
        self.norm = RMSNorm(self.value_dim, config.rms_norm_eps)
        self.out_proj = linear(self.values, config.hidden_size)
        self.silu = SiLU()

    @staticmethod
    def recurrence(config: PretrainedConfig) -> Recurrence:
        keys = config.linear_num_key_heads * config.linear_key_head_dim
        values = config.linear_num_value_heads * config.linear_value_head_dim
        return Recurrence(
            heads=config.linear_num_value_heads,
            key_dim=config.linear_key_head_dim,
            value_dim=config.linear_value_head_dim,
            row=2 * keys + values + 2 * config.linear_num_value_heads,
            before=config.linear_conv_kernel_dim - 1,
        )

    def forward(self, x: Tensor, recent: Recent, kv: KVAccess) -> Tensor:
        """[1, T, D] -> [1, T, D]"""
        tokens = x.shape[1]
        state, kept = kv.memory(self.index)
        own = torch.cat([self.in_proj_qkv(x), self.in_proj_b(x), self.in_proj_a(x)], -1)
        rows = torch.cat([_chosen(recent.before, kept, kv), own], 1)  # [1, B + W + T, R]
        mixed = self.silu(self.conv1d(rows[..., : self.channels] * recent.told))  # [1, N, C]
        before = rows.shape[1] - mixed.shape[1]
        step, decay = rows[:, before:, self.channels :].transpose(1, 2).split(self.heads, 1)  # [1, H, N] each
        step = torch.sigmoid(step) * recent.live
        decay = -torch.exp(self.A_log)[:, None] * _softplus(decay + self.dt_bias[:, None]) * recent.live
        query, key = self._unit_heads(mixed[..., : 2 * self.keys])
        value = _by_head(mixed[..., 2 * self.keys :], self.heads)
        read, state = self._block(query, key, value, step, decay, state * recent.goes_on, recent, kv)
        kv.remember(self.index, state, _chosen(recent.kept, rows, kv))
        read = read[:, :, recent.back :].transpose(1, 2)  # [1, T, H, V]
        gate = self.silu(self.in_proj_z(x)).reshape(read.shape)
        return self.out_proj((self.norm(read) * gate).reshape(1, tokens, self.values))  # type: ignore[no-any-return]

    def _unit_heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys of length 1, [1, N, 2 * G * K] -> [1, H, N, K] each.

        Each key head serves as many value heads, one after the other. Both are normed at once: ExecuTorch puts uses of
        one constant into one delegate, whatever lies between them.
        """
        heads = self.unit(_by_head(x, 2 * self.key_heads)) * self.key_dim**-0.5
        flat = heads.reshape(1, 2 * self.key_heads, 1, -1)
        served = torch.cat([flat] * (self.heads // self.key_heads), 2).reshape(1, 2 * self.heads, -1, self.key_dim)
        query, key = served.split(self.heads, 1)
        return query, key

    def _block(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        step: Tensor,
        decay: Tensor,
        state: Tensor,
        recent: Recent,
        kv: KVAccess,
    ) -> tuple[Tensor, Tensor]:
        """What N tokens read, [1, H, N, V], and the state [1, H, V, K] after those that settle.

        Step and decay (g) are [1, H, N]: 0 for rows that are in the state before.
        """
        order = recent.order
        # cumulated[i] is the decay from the state to row i, `between[i, j]` that from row j to row i.
        cumulated = kv.product(decay[:, None], order.upto)[:, 0]  # [1, H, N]
        between = torch.exp(torch.clamp(cumulated[..., None] - cumulated[..., None, :], max=0.0)) * order.upto
        since = torch.exp(cumulated)[..., None]
        weighted = key * step[..., None]
        solved = inverse(kv.product(weighted, key) * between * order.earlier, order, kv)
        # Each row's value, less what the state before it says already: the delta.
        expected = kv.product(weighted * since, state)
        delta = kv.product(solved, (value * step[..., None] - expected).transpose(-1, -2))  # [1, H, N, V]
        query = query * self.key_dim**-0.5
        within = kv.product(kv.product(query, key) * between, delta.transpose(-1, -2))
        read = kv.product(query * since, state) + within
        settled = (decay * recent.settles).sum(-1, keepdim=True)  # [1, H, 1]
        left = torch.exp(torch.clamp(settled - cumulated, max=0.0)) * recent.settles
        added = kv.product(delta.transpose(-1, -2), (key * left[..., None]).transpose(-1, -2))  # [1, H, V, K]
        return read, state * torch.exp(settled)[..., None] + added


def _chosen(choice: Tensor, rows: Tensor, kv: KVAccess) -> Tensor:
    """Of rows [1, n, R]: see `_choice`."""
    return kv.product(choice, rows[:, None].transpose(2, 3))[:, 0]


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[1, N, heads * d] -> [1, heads, N, d]"""
    return x.reshape(1, x.shape[1], heads, -1).transpose(1, 2)


def _softplus(x: Tensor) -> Tensor:
    return torch.relu(x) + torch.log(1.0 + torch.exp(-torch.abs(x)))
