"""What a rule does to a weight, computed in numpy: levels and scales, the error report, the reference for graphs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from pocketdraft.runtime.errors import PocketdraftError

from . import grid
from .recipe import Rule

Weight = npt.NDArray[np.float32]
Levels = npt.NDArray[np.int8]
Scales = npt.NDArray[np.float32]

# Shares of the largest magnitude that the outermost level may stand for, tried in turn.
CLIPPING = {4: np.linspace(1.0, 0.65, 8), 2: np.linspace(1.0, 0.3, 8)}
CACHED = 1 << 17  # weights worked on at a time: what the passes of a search keep near
SMALLEST_SCALE = 2.0**-24  # of a block: float16's smallest


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


def quantize(weight: Weight, rule: Rule, signed: bool = False) -> tuple[Levels, Scales]:
    """[outputs, inputs] to levels [outputs, blocks, block] and scales [outputs, blocks], symmetric, no zero point.

    Without blocks a row is one block; rows are independent of each other. A row's scale is float32, a block's is
    rounded to what runtimes keep. A block that already lies on a grid keeps its grid, level -8 of an int4 included;
    others get the scale of least squared error, or of the largest magnitude if the rule says "absmax". `signed` lets
    scales be negative (ONNX Runtime takes those, XNNPACK does not), which the grids of Q4_0 need: half of their
    blocks go from -7 to 8.
    """
    rows, columns = weight.shape
    blocks = weight.reshape(rows, -1, rule.block or columns)
    levels, scales = np.empty(blocks.shape, np.int8), np.empty(blocks.shape[:2], np.float32)
    step = max(1, CACHED // columns)
    for start in range(0, rows, step):
        part = blocks[start : start + step]
        flat = part.reshape(-1, part.shape[-1])
        chosen = choose_scales(flat, rule, signed)
        scales[start : start + step] = chosen.reshape(part.shape[:2])
        levels[start : start + step] = nearest(flat, chosen, rule).reshape(part.shape)
    return levels, scales


def nearest(blocks: Weight, scales: Scales, rule: Rule) -> npt.NDArray[np.float32]:
    """The levels, as floats, that blocks [N, n] are nearest to at scales [N]."""
    lowest, highest = rule.levels
    levels = blocks / scales[:, None]
    np.rint(levels, out=levels)
    np.clip(levels, lowest, highest, out=levels)
    return levels


def choose_scales(blocks: Weight, rule: Rule, signed: bool = False) -> Scales:
    """Scales [N] of float32 blocks [N, n]. See `quantize`."""
    low, high = blocks.min(-1), blocks.max(-1)
    if signed:
        # With the largest magnitude at the negative end, where there is a level more.
        flip = np.where(high > -low, -1, 1).astype(np.float32)
        flipped: Scales = flip * choose_scales(blocks * flip[:, None], rule)
        return flipped
    largest = np.maximum(-low, high)
    own = grid.steps(blocks, largest, 1 << (rule.bits - 1))
    scales = _kept(np.where(own > 0, own, 1), rule)
    # A block on a grid with a level too many (+8, or an int8's -128) may be better off with another scale.
    lowest, highest = rule.levels
    inside = (high <= (highest + 0.5) * own) & (low >= (lowest - 0.5) * own)
    rest = np.flatnonzero(~inside & (largest > 0))
    if rest.size:
        scales[rest] = _search(blocks[rest], largest[rest], rule, np.where(own[rest] > 0, scales[rest], 0))
    return scales


def _search(blocks: Weight, largest: Weight, rule: Rule, given: Scales) -> Scales:
    """The scale of least squared error, by block. `given` is one to beat, 0 where there is none."""
    clips = rule.scale == "mse" and rule.bits in CLIPPING
    scales, error = given, np.where(given > 0, _error(blocks, np.where(given > 0, given, 1), rule), np.inf)
    for share in CLIPPING[rule.bits] if clips else (1.0,):
        scales, error = _better(blocks, rule, scales, error, _kept(largest * share / rule.levels[1], rule))
    if clips:
        levels = nearest(blocks, scales, rule)
        fitted = np.einsum("ij,ij->i", blocks, levels) / np.maximum(np.einsum("ij,ij->i", levels, levels), 1)
        scales, _ = _better(blocks, rule, scales, error, _kept(fitted, rule))
    return scales


def _better(
    blocks: Weight, rule: Rule, scales: Scales, error: npt.NDArray[np.floating], other: Scales
) -> tuple[Scales, npt.NDArray[np.floating]]:
    theirs = _error(blocks, other, rule)
    better = theirs < error
    return np.where(better, other, scales), np.where(better, theirs, error)


def _error(blocks: Weight, scales: Scales, rule: Rule) -> npt.NDArray[np.floating]:
    """Squared error of each block."""
    off = nearest(blocks, scales, rule)
    off *= scales[:, None]
    off -= blocks
    squares: npt.NDArray[np.floating] = np.einsum("ij,ij->i", off, off)
    return squares


def _kept(scales: npt.NDArray[np.floating], rule: Rule) -> Scales:
    """As runtimes keep them: float32 a row; a block's in bfloat16, which a LiteRT file holds as float16."""
    if not rule.block:
        rows: Scales = np.maximum(scales, 1e-30).astype(np.float32)
        return rows
    narrow = scales.astype(ml_dtypes.bfloat16).astype(np.float16)
    kept: Scales = np.maximum(narrow.astype(np.float32), np.float32(SMALLEST_SCALE))
    return kept


def restore(levels: npt.NDArray[np.integer | np.floating], scales: Scales) -> Weight:
    """What `quantize` kept of a weight: float32 [outputs, inputs]."""
    restored: Weight = (levels * scales[..., None]).reshape(len(levels), -1).astype(np.float32)
    return restored


def on_grid(weight: Weight, rule: Rule) -> float:
    """Share of the weight's blocks that lie on a grid of the rule's bits already; those of zeros do."""
    blocks = weight.reshape(-1, rule.block or weight.shape[1])
    largest = np.abs(blocks).max(-1)
    return float(((grid.steps(blocks, largest, 1 << (rule.bits - 1)) > 0) | (largest == 0)).mean())


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
