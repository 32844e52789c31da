"""What to export: frozen, checked on construction, no work done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pocketdraft.quantize.recipe import Recipe, Rule
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import Backend, Device, recipe_part

from .cache import Cache

# (what is being done, done so far, in all)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Recipes:
    """One recipe each: they may differ, and the drafter's precision is best chosen by acceptance."""

    target: Recipe
    drafter: Recipe
    embedder: Recipe

    def of(self, part: str) -> Recipe:
        return {"target": self.target, "drafter": self.drafter, "embedder": self.embedder}[recipe_part(part)]

    def rule_for(self, weight: str) -> Rule:
        """By the weight's name, `part.path`."""
        return self.of(weight.partition(".")[0]).rule_for(weight)


def check_device(device: Device, backend: Backend | Literal["all"]) -> None:
    """Raises PocketdraftError where the backend's graphs run on a CPU only."""
    if device == "gpu" and backend != "litert":
        raise PocketdraftError(
            f"--device is gpu, --backend is {backend}; only LiteRT's graphs run on a GPU: give --backend litert."
        )


@dataclass(frozen=True)
class Plan:
    """`context` counts cache slots. `verify` are widths T (drafts + 1), the first being LiteRT-LM's own.

    `drafters` are checkpoints' folders, one of a kind, or none. With `early_exit` the target's first so many layers
    draft as well, and a token may leave after each number. Of an MTP drafter, `head` "auto" takes the centroid head
    where the checkpoint has one and the device runs it, and `position` is the convention that it was trained with (see
    `runtime.drafter_specs.MTPSpec`); transformers and Google's use "pending". `lora` and `drafter_lora` are adapters'
    folders, merged in their order into the target and into the first drafter. `max_memory` is in bytes.
    """

    target: Path
    drafters: tuple[Path, ...]
    out: Path
    recipes: Recipes
    backend: Backend = "litert"
    device: Device = "cpu"
    context: int = 512
    prefill: tuple[int, ...] = (16, 128)
    verify: tuple[int, ...] = (5, 2, 3, 9)
    head: Literal["auto", "dense", "centroid"] = "auto"
    position: Literal["pending", "last_cached"] = "pending"
    kv: Literal["float32", "int8"] = "float32"
    lora: tuple[Path, ...] = ()
    drafter_lora: tuple[Path, ...] = ()
    cache: Cache = field(default_factory=Cache.default)
    max_memory: float | None = None
    early_exit: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.out.suffix == ".litertlm" and self.backend != "litert":
            raise PocketdraftError(
                f"--out {self.out} is LiteRT-LM's file, --backend is {self.backend}; give a folder or --backend litert."
            )
        check_device(self.device, self.backend)
        if self.device == "gpu" and self.head == "centroid":
            raise PocketdraftError(
                "--device is gpu, --head is centroid, whose gather and scatter no GPU runs; give --head dense."
            )
        if self.device == "gpu" and self.kv == "int8":
            raise PocketdraftError("--device is gpu, --kv is int8, which no GPU kernel reads; give --kv float32.")
        for name, widths in (("prefill", self.prefill), ("verify", self.verify)):
            if not widths or len(set(widths)) != len(widths) or min(widths) < 1:
                raise PocketdraftError(f"--{name} is {list(widths)}; give distinct positive widths.")
        if list(self.early_exit) != sorted(set(self.early_exit)):
            raise PocketdraftError(
                f"--early-exit is {','.join(map(str, self.early_exit))}; give rising numbers: a token that does not "
                "leave after the first goes on to the next."
            )
        if min(self.verify) < 2:
            raise PocketdraftError(
                "--verify has width 1, which is `decode`; a verify width is drafts + 1, so 2 or more."
            )
        if self.widest > self.context:
            raise PocketdraftError(
                f"--context is {self.context}, a graph is {self.widest} tokens wide; "
                "raise --context or drop that width."
            )

    @property
    def widest(self) -> int:
        """The most tokens of a call."""
        return max(*self.prefill, *self.verify)

    @property
    def ring_width(self) -> int | None:
        """`KVLayout.of`'s `widest`: GPU kernels read whole layers only."""
        return self.widest if self.device == "cpu" else None

    @property
    def allows_centroids(self) -> bool:
        """Whether a drafter that has a centroid head keeps it."""
        return self.head != "dense" and self.device == "cpu"
