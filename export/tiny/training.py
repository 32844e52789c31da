"""What both trainings share: batches of held texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .corpus import DOMAINS

LENGTH = 256
SHARES = (0.4, 0.2, 0.2, 0.2)  # of a batch, in the order of DOMAINS


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
