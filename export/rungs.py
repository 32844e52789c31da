"""The rungs of the parity ladder that need torch: transformers, our steps, our steps with quantized weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pocketdraft.quantize.recipe import Recipe
from pocketdraft.runtime.engine import Engine
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import Manifest

from .backends.eager import EagerEngine
from .checkpoint import Checkpoint
from .pair import check_pair
from .pipeline import backend_of, load_models, make_steps
from .plan import Plan, Recipes
from .reference import TransformersEngine
from .step import Plain
from .tiny import DRAFTER_DIR, TARGET_DIR


def find_checkpoints(manifest: Manifest, target: Path | None, drafter: Path | None) -> tuple[Path, Path] | None:
    """The bundle's checkpoints: as given, else the embedded pair if the bundle was made of it, else None.

    Raises PocketdraftError if those given are not the ones that the bundle was made of.
    """
    if (target is None) != (drafter is None):
        raise PocketdraftError("Only one of --target and --drafter was given; give both or neither.")
    asked = target is not None and drafter is not None
    folders = (target, drafter) if target and drafter else (TARGET_DIR, DRAFTER_DIR)
    wanted = (manifest.source.target_sha256, manifest.source.drafter_sha256)
    for folder, digest in zip(folders, wanted, strict=True):
        if Checkpoint.open(folder).sha256() != digest:
            if not asked:
                return None
            raise PocketdraftError(
                f"{folder} is not the checkpoint that the bundle was made of (sha256 differs); "
                f"it was made of {manifest.source.target} and {manifest.source.drafter}."
            )
    return folders


def rungs(manifest: Manifest, target: Path, drafter: Path) -> Iterator[tuple[str, Engine]]:
    """Name and engine, from the top; the last stands right above the bundle's own graphs."""
    target_files, drafter_files = Checkpoint.open(target), Checkpoint.open(drafter)
    check_pair(target_files, drafter_files)
    yield "transformers", TransformersEngine(manifest, target_files, drafter_files)
    plan = plan_of(manifest, target, drafter)
    models = load_models(target_files, drafter_files)
    steps, _ = make_steps(plan, models, Plain())
    yield "step", EagerEngine(manifest, steps)
    if any(
        rule.dtype != "float32" for part in ("target", "drafter", "embedder") for rule in plan.recipes.of(part).rule
    ):
        backend_of(plan).quantize_steps(steps, plan.recipes)
        yield "quantized step", EagerEngine(manifest, steps)


def plan_of(manifest: Manifest, target: Path, drafter: Path) -> Plan:
    """The plan that a bundle was made by."""
    recipes = {part: Recipe.model_validate(recipe) for part, recipe in manifest.recipe.items()}
    verify = [graph.width for graph in manifest.graphs if graph.role == "verify"]
    return Plan(
        target=target,
        drafter=drafter,
        out=Path(),
        recipes=Recipes(**recipes),
        backend=manifest.backend,
        device=manifest.device,
        context=manifest.context_length,
        prefill=tuple(graph.width for graph in manifest.graphs_of("prefill")),
        verify=tuple(verify),
        head=manifest.drafter.head,
        position=manifest.drafter.position,
    )
