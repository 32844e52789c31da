"""What a rule does to a weight, computed in numpy: the error report, and the reference for quantized graphs."""

from __future__ import annotations

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


def round_trip(weight: Weight, rule: Rule) -> Weight:
    """[outputs, inputs] quantized symmetrically per output channel, or per block of inputs, and back.

    A channel's scale is float32, a block's is stored in bfloat16, as the runtimes keep it.
    """
    if rule.dtype == "float32":
        return weight
    rows, columns = weight.shape
    block = rule.block or columns
    grouped = weight.reshape(rows, columns // block, block)
    top = 2 ** (rule.bits - 1) - 1
    scale = np.maximum(np.abs(grouped).max(-1, keepdims=True), np.float32(1e-30)) / np.float32(top)
    if rule.block:
        scale = scale.astype(ml_dtypes.bfloat16).astype(np.float32)
    levels = np.clip(np.rint(grouped / scale), -top, top)
    restored: Weight = (levels * scale).reshape(rows, columns).astype(np.float32)
    return restored


def error_of(name: str, weight: Weight, rule: Rule) -> WeightError:
    """Raises PocketdraftError if the rule's blocks do not divide the weight's rows."""
    if rule.block and weight.shape[1] % rule.block:
        raise PocketdraftError(
            f"The recipe asks for blocks of {rule.block} in {name}, whose rows have {weight.shape[1]} inputs; "
            "put a rule for it with block = 0 before."
        )
    noise = round_trip(weight, rule) - weight
    signal = float(np.square(weight, dtype=np.float64).sum())
    power = float(np.square(noise, dtype=np.float64).sum())
    sqnr = 10 * float(np.log10(signal / power)) if power and signal else float("inf")
    return WeightError(name, rule.dtype, weight.shape, float(np.abs(noise).max()), sqnr)
