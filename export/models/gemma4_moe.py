"""Gemma 4's mixture of experts (26B-A4B), written for export.

The same arithmetic as `Gemma4TextRouter` and `Gemma4TextExperts` in transformers' `modeling_gemma4.py`, with static
shapes. The experts' weights are tables of which a token looks up the rows of its own experts, so that a runtime
reads those only, and dequantizes them only. Letters in shapes: T tokens of a call, D hidden size, E experts, K
experts of a token, I an expert's intermediate size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Gemma4TextConfig

from .layers import GELU, RMSNorm, linear

# What a graph may hold of experts' weights at a time.
LOOKUP_BYTES = 1 << 28


@dataclass(frozen=True)
class MixtureOfExperts:
    experts: int
    top: int
    intermediate: int

    @staticmethod
    def from_config(config: Gemma4TextConfig) -> MixtureOfExperts | None:
        """None for a dense model. The configuration of 12B ("unified") knows no experts at all."""
        if not getattr(config, "enable_moe_block", False):
            return None
        return MixtureOfExperts(config.num_experts, config.top_k_experts, config.moe_intermediate_size)


class Router(nn.Module):
    """Which experts a token takes, and how much of each."""

    def __init__(self, hidden: int, moe: MixtureOfExperts, eps: float) -> None:
        super().__init__()
        self.top, self.temperature = moe.top, hidden**-0.5
        self.norm = RMSNorm(hidden, eps, scaled=False)
        self.proj = linear(hidden, moe.experts)
        self.scale = nn.Parameter(torch.empty(hidden))
        self.per_expert_scale = nn.Parameter(torch.empty(moe.experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[T, D] -> weights float32 [T, K] and experts int32 [T, K]. Weights sum to 1 before each expert's scale."""
        scores = self.proj(self.norm(x) * self.scale * self.temperature)
        weights, chosen = torch.topk(torch.softmax(scores, -1), self.top)
        weights = weights / weights.sum(-1, keepdim=True)
        return weights * self.per_expert_scale[chosen], chosen.to(torch.int32)


class Experts(nn.Module):
    """Rows of `gate_up_proj` are an expert's gates, then its ups, expert by expert; those of `down_proj` its outputs.

    Looked up are, one after another, gates, ups and outputs of as many tokens as `LOOKUP_BYTES` allow, as float32: in
    26B-A4B each of the three is 63 MB a token. A graph of symbolic width looks up all of its tokens' at once.
    """

    def __init__(self, hidden: int, moe: MixtureOfExperts) -> None:
        super().__init__()
        self.hidden, self.moe = hidden, moe
        self.gate_up_proj = nn.Embedding(moe.experts * 2 * moe.intermediate, hidden)
        self.down_proj = nn.Embedding(moe.experts * hidden, moe.intermediate)
        self.activation = GELU()

    @property
    def checkpoint_shapes(self) -> dict[str, tuple[int, int, int]]:
        """By its name in a checkpoint, the shape there of what is the table `name.weight` here, in the same order."""
        e, i, d = self.moe.experts, self.moe.intermediate, self.hidden
        return {"gate_up_proj": (e, 2 * i, d), "down_proj": (e, d, i)}

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x [T, D], weights [T, K], chosen int32 [T, K] -> [T, D]."""
        tokens = x.shape[0]
        at_once = max(1, LOOKUP_BYTES // (4 * self.moe.top * self.moe.intermediate * self.hidden))
        if not isinstance(tokens, int) or tokens <= at_once:
            return self._mix(x, weights, chosen)
        outputs: list[Tensor] = []
        for start in range(0, tokens, at_once):
            some = slice(start, start + at_once)
            own = chosen[some] + _zero_after(outputs[-1]) if outputs else chosen[some]
            outputs.append(self._mix(x[some], weights[some], own))
        return torch.cat(outputs)

    def _mix(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        i, d, top = self.moe.intermediate, self.hidden, self.moe.top
        inputs = x[:, None].expand(-1, top, -1).reshape(-1, d, 1)
        first = chosen * (2 * i)
        gate = _rows(self.gate_up_proj, first, i, d) @ inputs
        up = _rows(self.gate_up_proj, first + i + _zero_after(gate), i, d) @ inputs
        down = _rows(self.down_proj, chosen * d + _zero_after(up), d, i) @ (self.activation(gate) * up)
        return (down.reshape(-1, top, d) * weights[..., None]).sum(1)


def _rows(table: nn.Module, first: Tensor, count: int, columns: int) -> Tensor:
    """`count` rows from each of `first` (int32, N in all) on: [N, count, columns]."""
    rows = first.reshape(-1, 1) + torch.arange(count, dtype=torch.int32)
    return table(rows.reshape(-1)).reshape(-1, count, columns)  # type: ignore[no-any-return]


def _zero_after(x: Tensor) -> Tensor:
    """An int32 zero [1] that is there once x is. Without it LiteRT looks all rows up first, then delegates the rest."""
    return (x.reshape(-1)[:1] > float("inf")).to(torch.int32)
