"""What the modules of a family are made of. A backend puts its own norms and activations in the place of these."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """`zero_centred` says that its weights are what is added to one."""

    def __init__(self, size: int, eps: float, scaled: bool = True, zero_centred: bool = False) -> None:
        super().__init__()
        self.size, self.eps, self.zero_centred = size, eps, zero_centred
        self.weight = nn.Parameter(torch.empty(size)) if scaled else None

    @property
    def scale(self) -> Tensor | None:
        """What normed rows are multiplied by."""
        return self.weight if self.weight is None or not self.zero_centred else self.weight + 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps)
        return x if self.scale is None else x * self.scale


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class GELU(nn.Module):
    """The tanh approximation."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x, approximate="tanh")


class SiLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)): SwiGLU or GeGLU by its activation."""

    def __init__(self, hidden: int, intermediate: int, activation: nn.Module) -> None:
        super().__init__()
        self.gate_proj = linear(hidden, intermediate)
        self.up_proj = linear(hidden, intermediate)
        self.down_proj = linear(intermediate, hidden)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap
