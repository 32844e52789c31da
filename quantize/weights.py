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


def round_trip(weight: Weight, rule: Rule) -> Weight:
    """The weight as a quantized graph sees it."""
    if rule.dtype == "float32":
        return weight
    levels, scale = quantize(weight, rule)
    restored: Weight = (levels * scale[..., None]).reshape(weight.shape).astype(np.float32)
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
