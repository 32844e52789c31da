"""The optimizer of both trainings: Muon for matrices, AdamW for the rest, and the learning rate's course."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

MUON_RATE, ADAM_RATE = 0.02, 4e-3
WARM_STEPS = 30
# Newton-Schulz coefficients and five iterations, as published with Muon (Jordan et al., 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized. In float32 and batched by shape: bfloat16 is three times slower on a CPU."""

    def __init__(self, weights: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(weights, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                    momentum.lerp_(weight.grad, 0.05)
                    by_shape.setdefault(weight.shape, []).append((weight, weight.grad.lerp(momentum, 0.95)))
            for shape, pairs in by_shape.items():
                updates = _orthogonalize(torch.stack([update for _, update in pairs]))
                for (weight, _), update in zip(pairs, updates, strict=True):
                    weight.add_(update, alpha=-group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5)


def _orthogonalize(x: Tensor) -> Tensor:
    """[N, rows, columns] -> the nearest matrices with singular values near 1."""
    a, b, c = NEWTON_SCHULZ
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Optimizer:
    """Muon for matrices, AdamW for tables and vectors; warm up, hold, cool down to 2 %.

    `rate` scales both learning rates: 1 is for a model that starts from nothing.
    """

    def __init__(self, model: nn.Module, rate: float = 1.0) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                matrix = weight.ndim == 2 and "embed" not in name and "lm_head" not in name
                (matrices if matrix else others).append(weight)
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = []
        if others:
            adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)
            self._optimizers.append((adam, rate * ADAM_RATE))
        if matrices:
            self._optimizers.append((Muon(matrices, MUON_RATE), rate * MUON_RATE))
        self._model = model

    def step(self, index: int, done: float) -> None:
        """Step `index` from 0, and the share of the training that is done before it, 0 to 1."""
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        warm = min(1.0, (index + 1) / WARM_STEPS)
        cool = min(1.0, max(0.02, (1 - done) / 0.45))
        for optimizer, rate in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * warm * cool
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
