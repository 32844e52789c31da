"""What verifying T tokens costs, over decoding one: the curve that decides which draft length pays.

    python benchmarks/verify_cost.py [--hidden 1024] [--recipes f32,w8,w4] [--backends litert,executorch,onnx]

A random target (1024 wide: 119 million parameters) is exported for each backend and recipe, and its graphs are run
in turn within each repeat, with one thread; transformers' own forward passes, eager and compiled, run beside them.

The physics: decoding reads every weight for one token, and is bound by memory; a verify reads them as often for T
tokens, so it is nearly free until arithmetic takes longer than reading. A draft of n pays if it is accepted more
often than (cost of T = n + 1, and of n draft steps) - 1. The last line is JSON; the plot is `verify_cost.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import matplotlib
import numpy as np
import torch
from pairs import random_pair
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache, Gemma4ForCausalLM

from pocketdraft.export.hf_compat import patch_transformers
from pocketdraft.export.isolated import build_isolated
from pocketdraft.export.plan import Plan, Recipes
from pocketdraft.quantize.recipe import load
from pocketdraft.runtime import terminal
from pocketdraft.runtime.cache import Cache
from pocketdraft.runtime.engine import Engine, open_engine
from pocketdraft.runtime.target import Target

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WIDTHS = (1, 2, 4, 8, 16, 32)
CONTEXT = 512
COMMITTED = 128  # tokens in the cache while measuring
COLOURS = {"litert": "tab:blue", "executorch": "tab:red", "onnx": "tab:green", "transformers": "0.5"}
STYLES = {"w8": "--", "w4": ":", "compiled": "--"}
Call = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--recipes", default="f32,w8,w4")
    parser.add_argument("--backends", default="litert,executorch,onnx")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("build/verify_cost"))
    chosen = parser.parse_args()
    terminal.silence_native_code()
    torch.set_num_threads(1)
    patch_transformers()
    target, drafter = random_pair(chosen.work / f"pair-{chosen.hidden}", chosen.hidden)
    curves: dict[str, dict[int, float]] = {}
    with terminal.progress(quiet=False) as advance:
        for backend in chosen.backends.split(","):
            for name in chosen.recipes.split(","):
                bundle = chosen.work / f"{backend}-{name}-{chosen.hidden}"
                if not bundle.exists():
                    recipe = load(name)
                    recipes = Recipes(recipe, recipe, recipe)
                    plan = Plan(
                        target, (drafter,), bundle, recipes, backend, context=CONTEXT, prefill=(32,), verify=WIDTHS[1:]
                    )
                    build_isolated([plan], advance)
                advance(f"Timing {backend} {name}", 0, 1)
                engine = open_engine(bundle, 1)
                curves[f"{backend} {name}"] = measure(calls_of(engine), chosen.repeats)
                engine.close()
        if not chosen.no_peers:
            for compiled in (False, True):
                name = f"transformers {'compiled' if compiled else 'eager'}"
                advance(f"Timing {name}", 0, 1)
                curves[name] = measure(calls_of_transformers(target, compiled), max(3, chosen.repeats // 5))
    report(curves, chosen.work / "verify_cost.png", chosen.hidden)


def calls_of(engine: Engine) -> dict[int, Call]:
    """By width, the graph on its own: no embedding, no loop."""
    target, rng = Target(engine), np.random.default_rng(0)
    cache = Cache(engine.new_cache(), CONTEXT)
    target.prefill(cache, rng.integers(3, 2000, COMMITTED).tolist())
    graphs = [*engine.manifest.graphs_of("decode"), *engine.manifest.graphs_of("verify")]

    def call(name: str, width: int) -> Call:
        rows = [target._embedded(int(token)) for token in rng.integers(3, 2000, width)]
        inputs = {key: np.concatenate([row[key] for row in rows], 1) for key in rows[0]}
        inputs |= target.positions(COMMITTED, width)
        return lambda: engine.run(name, inputs, cache.handle)

    return {graph.width: call(graph.name, graph.width) for graph in graphs}


def calls_of_transformers(folder: Path, compiled: bool) -> dict[int, Call]:
    """A forward pass over T tokens after a cache of the same length, cut back after each."""
    model = Gemma4ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    forward: Any = torch.compile(model, dynamic=False) if compiled else model
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.arange(3, 3 + COMMITTED)[None], past_key_values=cache, use_cache=True)

    def call(width: int) -> Call:
        tokens = torch.arange(100, 100 + width)[None]

        @torch.no_grad()
        def run() -> None:
            forward(tokens, past_key_values=cache, use_cache=True)
            cache.crop(-width)

        return run

    return {width: call(width) for width in WIDTHS}


def measure(calls: dict[int, Call], repeats: int) -> dict[int, float]:
    """Median seconds by width; the widths take turns."""
    for call in calls.values():
        call()
        call()
    seconds: dict[int, list[float]] = {width: [] for width in calls}
    for _ in range(repeats):
        for width, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[width].append(time.perf_counter() - started)
    return {width: statistics.median(values) for width, values in seconds.items()}


def report(curves: dict[str, dict[int, float]], picture: Path, hidden: int) -> None:
    table = Table("graphs", "decode ms", title=f"Verify over decode, hidden size {hidden}, one thread")
    for width in WIDTHS[1:]:
        table.add_column(f"T = {width}", justify="right")
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, curve in curves.items():
        ratios = [curve[width] / curve[1] for width in WIDTHS]
        table.add_row(name, f"{curve[1] * 1e3:.2f}", *(f"{ratio:.2f}x" for ratio in ratios[1:]))
        backend, _, recipe = name.partition(" ")
        axes.plot(
            WIDTHS,
            ratios,
            STYLES.get(recipe, "-"),
            color=COLOURS[backend],
            marker="o",
            markersize=3,
            label=f"{name} ({curve[1] * 1e3:.1f} ms)",
        )
    axes.plot(WIDTHS, WIDTHS, color="0.7", linewidth=1, label="T times decoding")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
    axes.set_yticks(WIDTHS, [f"{width}x" for width in WIDTHS])
    axes.set_xlabel("tokens verified together, T")
    axes.set_ylabel("time over decoding one token")
    axes.set_title("What a verify costs (in brackets: one decode)")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=150)
    Console(width=120).print(table)
    print(f"plot: {picture}")
    print(json.dumps({name: {str(t): round(s * 1e3, 4) for t, s in curve.items()} for name, curve in curves.items()}))


if __name__ == "__main__":
    sys.exit(main())
