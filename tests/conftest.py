"""Pairs and bundles that several tests share, made once a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from kept import clear_old, kept

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Test runs go side by side: two threads each, spinning for each other, are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What exports share is kept between test runs, but apart from the user's own.
os.environ.setdefault("POCKETDRAFT_CACHE", str(Path(__file__).parents[1] / "build" / "cache"))
# Small widths: sliding windows whose rings wrap within the ladder (48 slots, 62 positions), several prefill graphs and
# two verify widths, in as few graphs as that takes.
WIDTHS = {"context": 96, "prefill": (24, 32), "verify": (5, 2)}
# Where one graph of each role is enough: every graph takes LiteRT's converter some ten seconds.
FEW_WIDTHS = {"context": 96, "prefill": (24,), "verify": (5,)}


@dataclass(frozen=True)
class Pair:
    target: Path
    drafter: Path


@pytest.fixture(scope="session")
def qwen_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Qwen3.5 of random weights, and its own MTP head."""
    from qwen3_5 import pair_in

    return pair_in(tmp_path_factory.mktemp("qwen3_5"))


@pytest.fixture(scope="session")
def make_pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Random weights in E2B's shape ("shared"), 12B's and 31B's ("dense") or a size's, saved as checkpoints."""
    import torch
    from small_sizes import small_pair

    from pocketdraft.export import sizes
    from pocketdraft.export.tiny import TARGET_DIR, configs

    torch.set_num_threads(1)
    made: dict[str, Pair] = {}

    def make(shape: str) -> Pair:
        if shape not in made:
            if shape in sizes.names():
                target, drafter = small_pair(shape)
            else:
                target = configs.target_config() if shape == "shared" else configs.dense_target_config()
                target.sliding_window = 16
                drafter = configs.drafter_config(target, centroids=shape == "shared", hidden=64)
            folder = tmp_path_factory.mktemp(shape)
            made[shape] = Pair(folder / "target", folder / "drafter")
            models = configs.random_pair(target, drafter, seed=0)
            for model, path in zip(models, (made[shape].target, made[shape].drafter), strict=True):
                model.save_pretrained(path)
                (path / "tokenizer.json").write_bytes((TARGET_DIR / "tokenizer.json").read_bytes())
        return made[shape]

    return make


@pytest.fixture(scope="session")
def make_bundle(make_pair: Callable[[str], Pair]) -> Callable[..., Path]:
    """A bundle by shape, recipe, backend and device. Takes ten to twenty seconds, for ExecuTorch about one minute.

    It is kept for other tests and later runs: change a copy.
    """
    from pocketdraft.export.pipeline import build
    from pocketdraft.export.plan import Plan, Recipes
    from pocketdraft.quantize.recipe import load

    @cache
    def make(shape: str, recipe: str, backend: str = "litert", device: str = "cpu") -> Path:
        def write(out: Path) -> None:
            pair, one, widths = make_pair(shape), load(recipe), FEW_WIDTHS if device == "gpu" else WIDTHS
            build([Plan(pair.target, (pair.drafter,), out, Recipes(one, one, one), backend, device, **widths)])

        return kept("-".join((shape, recipe, backend, device)), write)

    return make


@pytest.fixture(scope="session")
def make_trained_bundle() -> Callable[..., Path]:
    """The embedded pair by recipe, backend and device, with as few graphs as drafting takes. Kept: change a copy."""
    from pocketdraft.export.pipeline import build
    from pocketdraft.export.plan import Plan, Recipes
    from pocketdraft.export.tiny import DRAFTER_DIR, TARGET_DIR
    from pocketdraft.quantize.recipe import load

    @cache
    def make(recipe: str, backend: str, device: str = "cpu") -> Path:
        def write(out: Path) -> None:
            recipes = Recipes(*[load(recipe)] * 3)
            build([Plan(TARGET_DIR, (DRAFTER_DIR,), out, recipes, backend, device, prefill=(64,), verify=(5,))])

        return kept("-".join(("trained", recipe, backend, device)), write)

    return make


@pytest.fixture(scope="session")
def make_full_bundle() -> Callable[[str], Path]:
    """The embedded target with a drafter of each kind, w8, by backend, its exit before a layer that owns K/V.

    Takes minutes. Kept: change a copy.
    """
    from pocketdraft.export.pipeline import build
    from pocketdraft.export.plan import Plan, Recipes
    from pocketdraft.export.tiny import EMBEDDED, TARGET_DIR
    from pocketdraft.quantize.recipe import load

    @cache
    def make(backend: str) -> Path:
        def write(out: Path) -> None:
            recipes = Recipes(*[load("w8")] * 3)
            drafters, few = tuple(EMBEDDED.values()), {"prefill": (64,), "verify": (5,)}
            build([Plan(TARGET_DIR, drafters, out, recipes, backend, **few, early_exit=(2,))])

        return kept(f"full-{backend}", write)

    return make


@pytest.fixture(scope="session", autouse=True)
def clear_old_bundles() -> None:
    clear_old()
