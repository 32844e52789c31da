"""GPTQ: levels that keep what a weight gives on real inputs, not the weight itself (arXiv 2210.17323).

With X the inputs of a linear operator and H = X^T X, the error of a weight's row off by d is d H d^T. Columns are
rounded in turn, and those that are left make up for the error so far; sweeps over the columns then move single
levels while that lowers the error further.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .recipe import Rule
from .weights import Levels, Scales, Weight, choose_scales

Doubles = npt.NDArray[np.float64]

TOGETHER = 128  # columns whose errors reach the others in one product
ROWS = 16384  # rows worked on at a time


def gptq(
    weight: Weight, hessian: npt.NDArray[np.floating], rule: Rule, damping: float = 0.01, sweeps: int = 2
) -> tuple[Levels, Scales]:
    """Levels [outputs, blocks, block] and scales [outputs, blocks], as of `weights.quantize`.

    `weight` is [outputs, inputs], `hessian` [inputs, inputs]. `damping` is the share of the mean of its diagonal that
    is added to it. Columns go from the one with the largest inputs to the one with the smallest; scales are chosen
    beforehand, so that blocks stay where they are. A weight that lies on a grid comes out as it is.
    """
    rows, columns = weight.shape
    block = rule.block or columns
    damped = _damped(hessian, damping)
    order = np.argsort(-np.diag(damped), kind="stable")
    damped = damped[np.ix_(order, order)]
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    curvature = damped.astype(np.float32)
    levels, scales = np.empty((rows, columns), np.int8), np.empty((rows, columns // block), np.float32)
    for start in range(0, rows, ROWS):
        part = slice(start, start + ROWS)
        scales[part] = choose_scales(weight[part].reshape(-1, block), rule).reshape(-1, columns // block)
        by_column = scales[part][:, order // block]
        found = _propagate(weight[part][:, order], by_column, factor, rule)
        for _ in range(sweeps):
            _sweep(found, weight[part][:, order], by_column, curvature, rule)
        levels[part, order] = found
    return levels.reshape(rows, -1, block), scales


def compensated(
    weight: Weight,
    hessian: npt.NDArray[np.floating],
    cross: npt.NDArray[np.floating],
    share: float = 0.5,
    damping: float = 0.01,
) -> Weight:
    """The weight that makes up, in part, for what quantization has already done to its inputs (arXiv 2504.09629).

    With X the inputs now and Y those of the float model, `hessian` is X^T X and `cross` (Y - X)^T X. `share` 1 gives
    the least squared error from the float model's outputs on these very inputs; less is safer on others.
    """
    inputs = np.linalg.solve(_damped(hessian, damping), cross.T.astype(np.float64))  # H is symmetric
    result: Weight = (weight + share * (weight.astype(np.float64) @ inputs.T)).astype(np.float32)
    return result


def _damped(hessian: npt.NDArray[np.floating], damping: float) -> Doubles:
    """Inputs that were always zero get a curvature too."""
    damped = hessian.astype(np.float64)
    diagonal = np.diag(damped)
    damped[np.diag_indices(len(damped))] += damping * (diagonal.mean() or 1.0)
    return damped


def _propagate(weight: Weight, scales: Scales, factor: Weight, rule: Rule) -> npt.NDArray[np.float32]:
    """Levels column by column. `factor` is the upper Cholesky factor of the inverse; `scales` are by column."""
    left, levels = weight.copy(), np.empty_like(weight)
    for start in range(0, weight.shape[1], TOGETHER):
        end = min(start + TOGETHER, weight.shape[1])
        part, errors = left[:, start:end], np.empty((len(weight), end - start), np.float32)
        for i, column in enumerate(range(start, end)):
            scale = scales[:, column]
            levels[:, column] = np.clip(np.rint(part[:, i] / scale), *rule.levels)
            errors[:, i] = (part[:, i] - levels[:, column] * scale) / factor[column, column]
            part[:, i + 1 :] -= np.outer(errors[:, i], factor[column, column + 1 : end])
        left[:, end:] -= errors @ factor[start:end, end:]
    return levels


def _sweep(levels: npt.NDArray[np.float32], weight: Weight, scales: Scales, curvature: Weight, rule: Rule) -> None:
    """Gives each column in turn the levels that are best with all others as they are."""
    gradient = (weight - levels * scales) @ curvature
    for start in range(0, weight.shape[1], TOGETHER):
        end = min(start + TOGETHER, weight.shape[1])
        part, moved = gradient[:, start:end], np.empty((len(weight), end - start), np.float32)
        for i, column in enumerate(range(start, end)):
            scale = scales[:, column]
            wanted = levels[:, column] + part[:, i] / (curvature[column, column] * scale)
            wanted = np.clip(np.rint(wanted), *rule.levels)
            moved[:, i] = (wanted - levels[:, column]) * scale
            levels[:, column] = wanted
            part -= np.outer(moved[:, i], curvature[column, start:end])
        gradient[:, :start] -= moved @ curvature[start:end, :start]
        gradient[:, end:] -= moved @ curvature[start:end, end:]
