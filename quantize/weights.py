"""What a rule does to a weight, computed in numpy: the error report, and the reference for quantized graphs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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


def round_trip(weight: Weight, rule: Rule) -> Weight:
    """[outputs, inputs] quantized symmetrically per output channel, or per block of inputs, and back."""
    if rule.dtype == "float32":
        return weight
    rows, columns = weight.shape
    block = rule.block or columns
    grouped = weight.reshape(rows, columns // block, block)
    top = 2 ** (rule.bits - 1) - 1
    scale = np.maximum(np.abs(grouped).max(-1, keepdims=True), np.float32(1e-30)) / np.float32(top)
    levels = np.clip(np.rint(grouped / scale), -top, top)
    restored: Weight = (levels * scale).reshape(rows, columns).astype(np.float32)
    return restored


def error_of(name: str, weight: Weight, rule: Rule) -> WeightError:
    noise = round_trip(weight, rule) - weight
    signal = float(np.square(weight, dtype=np.float64).sum())
    power = float(np.square(noise, dtype=np.float64).sum())
    sqnr = 10 * float(np.log10(signal / power)) if power and signal else float("inf")
    return WeightError(name, rule.dtype, weight.shape, float(np.abs(noise).max()), sqnr)
