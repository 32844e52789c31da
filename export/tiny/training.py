"""What both trainings share: batches of held texts, Muon, and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .corpus import DOMAINS

LENGTH = 256
SHARES = (0.4, 0.2, 0.2, 0.2)  # of a batch, in the order of DOMAINS
MUON_RATE, ADAM_RATE = 0.02, 4e-3
# Newton-Schulz coefficients and five iterations, as published with Muon (Jordan et al., 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Batches:
    """Random windows of the encoded corpus."""

    def __init__(self, work: Path, split: str, seed: int) -> None:
        self._texts = [torch.from_numpy(np.load(work / f"{d}.{split}.npy").astype(np.int64)) for d in DOMAINS]
        self._random = torch.Generator().manual_seed(seed)

    def draw(self, count: int, length: int = LENGTH, domain: str | None = None) -> Tensor:
        """int64 [count, length]; domains mixed by SHARES unless one is named."""
        if domain is None:
            which = torch.multinomial(torch.tensor(SHARES), count, True, generator=self._random).tolist()
        else:
            which = [DOMAINS.index(domain)] * count
        rows = []
        for index in which:
            text = self._texts[index]
            start = int(torch.randint(0, len(text) - length, (1,), generator=self._random))
            rows.append(text[start : start + length])
        return torch.stack(rows)


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
    """Muon for matrices, AdamW for tables and vectors; warm up, hold, cool down to 2 %."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                matrix = weight.ndim == 2 and "embed" not in name and "lm_head" not in name
                (matrices if matrix else others).append(weight)
        adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [(adam, ADAM_RATE)]
        self._optimizers.append((Muon(matrices, MUON_RATE), MUON_RATE))
        self._model, self._steps = model, steps

    def step(self, index: int) -> None:
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        warm = min(1.0, (index + 1) / 30)
        cool = min(1.0, max(0.02, (self._steps - index) / (0.45 * self._steps)))
        for optimizer, rate in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * warm * cool
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
