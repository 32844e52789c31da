"""The rungs of the parity ladder that need torch: transformers, our steps, our steps with quantized weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pocketdraft.quantize.recipe import Recipe
from pocketdraft.runtime.engine import Engine
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import FORMAT_VERSION, Manifest

from .backends.eager import EagerEngine
from .checkpoint import Checkpoint
from .pair import check_pair
from .pipeline import backend_of, head_of, load_models, make_steps, source_of
from .plan import Plan, Recipes
from .reference import TransformersEngine
from .step import Plain
from .steps.mtp import drafter_spec
from .tiny import DRAFTER_DIR, TARGET_DIR


def find_checkpoints(
    manifest: Manifest,
    target: Path | None,
    drafter: Path | None,
    lora: Sequence[Path] = (),
    drafter_lora: Sequence[Path] = (),
) -> tuple[Path, Path] | None:
    """The bundle's checkpoints: as given, else the embedded pair if the bundle was made of it, else None.

    Raises PocketdraftError if those given are not the ones that the bundle was made of.
    """
    if (target is None) != (drafter is None):
        raise PocketdraftError("Only one of --target and --drafter was given; give both or neither.")
    asked = target or drafter or lora or drafter_lora
    folders = target or TARGET_DIR, drafter or DRAFTER_DIR
    wanted = (manifest.source.target_sha256, manifest.source.drafter_sha256)
    for folder, adapters, digest in zip(folders, (lora, drafter_lora), wanted, strict=True):
        if Checkpoint.open(folder, adapters).sha256() != digest:
            if not asked:
                return None
            raise PocketdraftError(
                f"{' + '.join(map(str, (folder, *adapters)))} is not what the bundle was made of (sha256 differs); "
                f"it was made of {manifest.source.target} and {manifest.source.drafter}."
            )
    return folders


def rungs(
    manifest: Manifest, target: Path, drafter: Path, lora: Sequence[Path] = (), drafter_lora: Sequence[Path] = ()
) -> Iterator[tuple[str, Engine]]:
    """Name and engine, from the top; the last stands right above the bundle's own graphs."""
    target_files, drafter_files = Checkpoint.open(target, lora), Checkpoint.open(drafter, drafter_lora)
    check_pair(target_files, drafter_files)
    yield "transformers", TransformersEngine(manifest, target_files, drafter_files)
    plan = plan_of(manifest, target, drafter)
    models = load_models(target_files, drafter_files)
    yield "step", EagerEngine(manifest, make_steps(replace(plan, kv="float32"), models, Plain())[0])
    recipes = (plan.recipes.of(part) for part in ("target", "drafter", "embedder"))
    if plan.kv == "int8" or any(rule.dtype != "float32" for recipe in recipes for rule in recipe.rule):
        steps, _ = make_steps(plan, models, Plain())
        backend_of(plan).quantize_steps(steps, plan.recipes)
        yield "quantized step", EagerEngine(manifest, steps)


def eager_pair(target: Checkpoint, drafter: Checkpoint, context: int, drafts: int = 4) -> EagerEngine:
    """A pair's float steps as an engine in torch, without a bundle: for checkpoints that are still to change.

    One prefill, 64 tokens wide, or as wide as the context.
    """
    check_pair(target, drafter)
    float32 = Recipe(name="f32", rule=())
    plan = Plan(
        target=target.folder,
        drafter=drafter.folder,
        out=Path(),
        recipes=Recipes(float32, float32, float32),
        context=context,
        prefill=(min(64, context),),
        verify=(drafts + 1,),
    )
    models = load_models(target, drafter)
    steps, layout = make_steps(plan, models, Plain())
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        backend=plan.backend,
        context_length=context,
        vocab_size=target.text_config.vocab_size,
        kv=layout.layers,
        graphs=tuple(step.spec for step in steps),
        parts={},
        drafter=drafter_spec(models.target.geometry, head_of(plan, drafter), plan.position),
        tokens=target.tokens(),
        recipe={},
        source=source_of(target, drafter),
        versions={},
        files={},
    )
    return EagerEngine(manifest, steps)


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
        kv="int8" if any(layer.steps for layer in manifest.kv) else "float32",
    )
