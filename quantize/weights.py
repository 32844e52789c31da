"""What a rule does to a weight, computed in numpy: the error report, and the reference for quantized graphs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from pocketdraft.runtime.errors import PocketdraftError

from .recipe import Rule

Weight = npt.NDArray[np.float32]


@dataclass(frozen=True)
class WeightError:
    """Error of one quantized weight. `sqnr_db` is signal over quantization noise, in decibels."""

    weight: str
    dtype: str
    shape: tuple[int, ...]
    max_abs: float
    sqnr_db: float


@dataclass
class ErrorSums:
    """Adds up what a rule does to a weight, some rows at a time."""

    max_abs: float = 0.0
    noise: float = 0.0
    signal: float = 0.0

    def add(self, weight: Weight, restored: Weight) -> None:
        error = restored - weight
        self.max_abs = max(self.max_abs, float(np.abs(error).max(initial=0.0)))
        self.noise += float(np.square(error, dtype=np.float64).sum())
        self.signal += float(np.square(weight, dtype=np.float64).sum())

    def of(self, name: str, rule: Rule, shape: tuple[int, ...]) -> WeightError:
        sqnr = 10 * math.log10(self.signal / self.noise) if self.noise and self.signal else math.inf
        return WeightError(name, rule.dtype, shape, self.max_abs, sqnr)


def quantize(weight: Weight, rule: Rule) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """[outputs, inputs] to levels [outputs, blocks, block] and scales [outputs, blocks], symmetric, no zero point.

    Without blocks a row is one block. A row's scale is float32, a block's is rounded to bfloat16, as runtimes keep it.
    """
    rows, columns = weight.shape
    grouped = weight.reshape(rows, -1, rule.block or columns)
    top = 2 ** (rule.bits - 1) - 1
    scale = np.maximum(np.abs(grouped).max(-1), np.float32(1e-30)) / np.float32(top)
    if rule.block:
        scale = scale.astype(ml_dtypes.bfloat16).astype(np.float32)
    levels = np.clip(np.rint(grouped / scale[..., None]), -top, top)
    return levels.astype(np.int8), scale


def restore(levels: npt.NDArray[np.int8], scale: npt.NDArray[np.float32]) -> Weight:
    """What `quantize` kept of a weight: float32 [outputs, inputs]."""
    restored: Weight = (levels * scale[..., None]).reshape(len(levels), -1).astype(np.float32)
    return restored


def round_trip(weight: Weight, rule: Rule) -> Weight:
    """The weight as a quantized graph sees it."""
    return weight if rule.dtype == "float32" else restore(*quantize(weight, rule))


def check_blocks(name: str, inputs: int, rule: Rule) -> None:
    """Raises PocketdraftError if the rule's blocks do not divide rows of this many inputs."""
    if rule.block and inputs % rule.block:
        raise PocketdraftError(
            f"The recipe asks for blocks of {rule.block} in {name}, whose rows have {inputs} inputs; "
            "put a rule for it with block = 0 before."
        )


def error_of(name: str, weight: Weight, rule: Rule) -> WeightError:
    """Raises PocketdraftError if the rule's blocks do not divide the weight's rows."""
    check_blocks(name, weight.shape[1], rule)
    sums = ErrorSums()
    sums.add(weight, round_trip(weight, rule))
    return sums.of(name, rule, weight.shape)
