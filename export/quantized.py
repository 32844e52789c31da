"""A weight quantized by a rule and written down, some rows at a time.

What the file holds, one after the other: levels (packed, see `pack`; float32 rows if the rule asks for float),
scales (float32 [rows, blocks], none for float), and the error as three float64: largest, sum of squares of the
noise, and of the signal.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from pocketdraft.quantize.recipe import Rule
from pocketdraft.quantize.weights import ErrorSums, WeightError, check_blocks, quantize, restore

from .cache import Cache, key_of
from .stored import Stored

# Part of every key: raise it when the same rule gives other levels, or the file another form.
REVISION = 2


@dataclass(frozen=True)
class Quantized:
    """The weight `name` by `rule`, in the cache. `source` is the sha256 of the file that it lies in."""

    name: str
    stored: Stored
    source: str
    rule: Rule
    cache: Cache

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored.matrix

    @property
    def levels_bytes(self) -> int:
        rows, columns = self.shape
        return rows * columns * self.rule.bits // 8

    @property
    def scales_shape(self) -> tuple[int, int]:
        rows, columns = self.shape
        return rows, columns // (self.rule.block or columns)

    def open(self) -> BinaryIO:
        """At the beginning of the levels. Quantizes the weight first if the cache does not have it."""
        rule = self.rule.model_dump(exclude={"weights"})
        key = key_of("quantized", REVISION, self.source, self.stored.name, self.stored.shape, sorted(rule.items()))
        return self.cache.open(key, self._write)

    def scales(self) -> npt.NDArray[np.float32]:
        """float32 [rows, blocks]; not for a rule of float."""
        with self.open() as file:
            file.seek(self.levels_bytes)
            return np.fromfile(file, np.float32, math.prod(self.scales_shape)).reshape(self.scales_shape)

    def error(self) -> WeightError:
        """What the rule does to the weight."""
        with self.open() as file:
            file.seek(-24, os.SEEK_END)
            return ErrorSums(*np.fromfile(file, np.float64, 3).tolist()).of(self.name, self.rule, self.shape)

    def _write(self, path: Path) -> None:
        check_blocks(self.name, self.shape[1], self.rule)
        errors = ErrorSums()
        scales = []
        with path.open("wb") as file:
            for chunk in self.stored.chunks():
                weight = chunk.numpy()
                if self.rule.dtype == "float32":
                    file.write(weight.tobytes())
                    continue
                levels, scale = quantize(weight, self.rule)
                file.write(pack(levels, self.rule.bits))
                scales.append(scale)
                errors.add(weight, restore(levels, scale))
            for scale in scales:
                file.write(scale.tobytes())
            file.write(np.array([errors.max_abs, errors.noise, errors.signal]).tobytes())


# By weight's name.
Weights = Mapping[str, Quantized]


def pack(levels: npt.NDArray[np.int8], bits: int) -> bytes:
    """Two's complement, the first level in the lowest bits: as LiteRT reads INT4 and INT2."""
    flat = levels.reshape(-1).view(np.uint8)
    if bits == 8:
        return flat.tobytes()
    parts = flat.reshape(-1, 8 // bits) & (2**bits - 1)
    packed = parts[:, 0].copy()
    for place in range(1, parts.shape[1]):
        packed |= parts[:, place] << (bits * place)
    return packed.tobytes()
