"""README's graph: drafted over plain speed by draft length, measured and predicted, a line a backend.

    make bench        # measures, writes the report, and calls this
    python benchmarks/draft_length.py build/bench/litert.json build/bench/onnx.json

Rings are predictions of lengths that were not used to fit. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

from pocketdraft.runtime.figures import median_error
from pocketdraft.runtime.results import ALL, Results, read_results

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"litert": "tab:blue", "executorch": "tab:red", "onnx": "tab:green"}
NAMES = {"litert": "LiteRT", "executorch": "ExecuTorch", "onnx": "ONNX Runtime"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"))
    chosen = parser.parse_args()
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for found in map(read_results, chosen.results):
        if isinstance(found, Results):
            draw(axes, found)
    axes.axhline(1, color="0.5", linewidth=1, linestyle=":")
    axes.set(xlabel="drafts a round", ylabel="drafted over plain speed", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(chosen.out, dpi=110)
    print(chosen.out)


def draw(axes: plt.Axes, found: Results) -> None:
    points = [point for point in found.of(ALL) if point.ratio]
    lengths = [int(point.drafts) for point in points]
    ratios = [point.ratio for point in points if point.ratio]
    colour, error = COLOURS[found.backend], median_error(found.predictions)
    label = f"{NAMES[found.backend]}, predictions off by {error:.1%}"
    values, low, high = ([1.0, *(getattr(r, name) for r in ratios)] for name in ("value", "low", "high"))
    axes.plot([0, *lengths], values, color=colour, marker="o", markersize=3, label=label)
    axes.fill_between([0, *lengths], low, high, color=colour, alpha=0.12, linewidth=0)
    plain = next(one.measured for one in found.predictions if one.domain == ALL and one.drafts == 0)
    rings = [
        (one.drafts, one.predicted / plain)
        for one in found.predictions
        if one.domain == ALL and one.held_out and isinstance(one.drafts, int)
    ]
    axes.plot(*zip(*rings, strict=True), "o", color=colour, markersize=7, fillstyle="none")


if __name__ == "__main__":
    main()
