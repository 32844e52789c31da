"""The grid that a weight already lies on: checkpoints of quantization-aware training, or dequantized ones.

Such a weight is level * step with small integer levels, one step a row or a block, and quantizing it by any other
scale throws away what it was trained for. The step is found from the values alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

SMALLEST_LEVEL = 8  # the most that the smallest value's level is tried for
# Levels up to here are told apart by a step that is off by bfloat16's rounding; the others once it is refined.
CERTAIN = 48
EXACT = 20  # significant bits that are asked to agree: float32 has more, which leaves room for how it was computed


def steps(blocks: Floats, largest: Floats, top: int) -> Floats:
    """float32 [N, n] to the step of each block, [N]: every value is a multiple of it, up to the storage's rounding.

    `largest` are the blocks' largest magnitudes, `top` is the largest level of either sign. 0 where a block lies on no
    such grid, or is zero.
    """
    magnitude = np.abs(blocks)
    smallest = np.where(magnitude > 0, magnitude, np.inf).min(-1)
    found = np.zeros(len(blocks), np.float32)
    # Of blocks on no grid, nearly all have some value far too small beside the largest: no more is computed for them.
    left = np.flatnonzero(largest > 0)
    for level in range(1, SMALLEST_LEVEL + 1):
        left = left[largest[left] * level <= smallest[left] * (top + 0.5)]
        if not left.size:
            break
        step = _refined(magnitude[left], smallest[left] / level, _significant_bits(blocks[left]), top)
        found[left] = step
        left = left[step == 0]
    return found


def _refined(magnitude: Floats, step: Floats, bits: npt.NDArray[np.int_], top: int) -> Doubles:
    """The step that explains all values within half a unit in their last place; 0 where there is none.

    Of all such steps the middle one, unless a step of the values' own type gives the very values: scales are mostly
    stored as weights are.
    """
    values, better = magnitude.astype(np.float64), step.astype(np.float64)
    half_unit = np.ldexp(0.5, np.frexp(values)[1] - np.minimum(bits, EXACT)[:, None])
    low, high = values - half_unit, values + half_unit
    for certain in (CERTAIN, top):
        levels = np.rint(values / better[:, None])
        sure = (levels > 0) & (levels <= certain)
        divisor = np.where(sure, levels, 1)
        least, most = np.where(sure, low / divisor, 0).max(-1), np.where(sure, high / divisor, np.inf).min(-1)
        better = (least + most) / 2
    fits = (least <= most) & (levels <= top).all(-1) & ((levels > 0) | (values == 0)).all(-1)
    held = _rounded(better, bits)
    same = (_rounded(levels * held[:, None], bits[:, None]) == values).all(-1)
    result: Doubles = np.where(fits, np.where(same, held, better), 0)
    return result


def _rounded(values: Doubles, bits: npt.NDArray[np.int_]) -> Doubles:
    """To so many significant bits."""
    unit = np.frexp(values)[1] - bits
    rounded: Doubles = np.ldexp(np.rint(np.ldexp(values, -unit)), unit)
    return rounded


def _significant_bits(blocks: Floats) -> npt.NDArray[np.int_]:
    """By block, those of the narrowest type that holds all its values."""
    bfloat16 = ((blocks.view(np.uint32) & 0xFFFF) == 0).all(-1)
    with np.errstate(over="ignore"):
        float16 = (blocks.astype(np.float16).astype(np.float32) == blocks).all(-1)
    return np.where(bfloat16, 8, np.where(float16, 11, 24))
