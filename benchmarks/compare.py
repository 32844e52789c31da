"""README's graph of all drafters: accepted drafts a round by draft length, a line a drafter, code beside JSON.

    make compare      # exports the embedded target with every drafter, measures, and calls this
    python benchmarks/compare.py build/bench/every.json

Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

from pocketdraft.runtime.results import Results, read_results

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOMAINS = {"code": "code", "json": "JSON"}
# A tree is drawn as the chain that it branches off, dashed; what looks up is grey.
STYLES = {
    "mtp": ("tab:blue", "-"),
    "mtp_tree": ("tab:blue", "--"),
    "mtp_heads": ("tab:orange", "-"),
    "draft_model": ("tab:green", "-"),
    "dflash": ("tab:red", "-"),
    "dflash_tree": ("tab:red", "--"),
    "early_exit": ("tab:purple", "-"),
    "prompt_lookup": ("0.5", "-"),
    "hybrid": ("0.5", "--"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"))
    chosen = parser.parse_args()
    found = read_results(chosen.results)
    if not isinstance(found, Results):
        parser.error(f"{chosen.results} is not what `bench --compare --out` writes")
    figure, panels = plt.subplots(1, 2, figsize=(8.0, 3.6), layout="constrained", sharey=True)
    for axes, (domain, name) in zip(panels, DOMAINS.items(), strict=True):
        for drafter, (colour, style) in STYLES.items():
            points = [point for point in found.of(domain, drafter) if point.drafter == drafter]
            lengths, accepted = [point.drafts for point in points], [point.accepted_per_round for point in points]
            axes.plot(lengths, accepted, style, color=colour, marker="o", markersize=3, label=drafter)
        axes.set(title=name, xlabel="drafts a round")
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="accepted a round", ylim=(0, None))
    panels[0].legend(fontsize=8, loc="upper left")
    figure.savefig(chosen.out, dpi=110)
    print(chosen.out)


if __name__ == "__main__":
    main()
