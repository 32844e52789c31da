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
from .drafting import by_kind, describe
from .pair import check_pair
from .pipeline import backend_of, load_models, make_steps, open_files, sources_of, takes_back
from .plan import Plan, Recipes
from .reference import TransformersEngine
from .step import Plain
from .tiny import EMBEDDED, TARGET_DIR


def find_checkpoints(
    manifest: Manifest,
    target: Path | None,
    drafters: Sequence[Path],
    lora: Sequence[Path] = (),
    drafter_lora: Sequence[Path] = (),
) -> tuple[Path, tuple[Path, ...]] | None:
    """The bundle's checkpoints: as given, else the embedded ones if the bundle was made of them, else None.

    Raises PocketdraftError if those given are not the ones that the bundle was made of.
    """
    asked = target or drafters or lora or drafter_lora
    embedded = [EMBEDDED[kind] for kind in manifest.source.drafters]
    folders = target or TARGET_DIR, tuple(drafters or embedded)
    given = [Checkpoint.open(folders[0], lora)]
    given += [Checkpoint.open(one, () if index else drafter_lora) for index, one in enumerate(folders[1])]
    if sources_of(*given) == manifest.source:
        return folders
    if not asked:
        return None
    wanted = (manifest.source.target, *manifest.source.drafters.values())
    strange = next((one for one in given if one.sha256() not in [source.sha256 for source in wanted]), None)
    if strange is None:
        raise PocketdraftError(f"The bundle was made of {manifest.source.names}; give --drafter for each of these.")
    raise PocketdraftError(
        f"{' + '.join(str(path) for path in strange.folders)} is not what the bundle was made of (sha256 differs); "
        f"it was made of {manifest.source.names}."
    )


def rungs(
    manifest: Manifest,
    target: Path,
    drafters: Sequence[Path],
    lora: Sequence[Path] = (),
    drafter_lora: Sequence[Path] = (),
) -> Iterator[tuple[str, Engine]]:
    """Name and engine, from the top; the last stands right above the bundle's own graphs."""
    plan = replace(plan_of(manifest, target, drafters), lora=tuple(lora), drafter_lora=tuple(drafter_lora))
    files = open_files(plan)
    check_pair(*files)
    yield "transformers", TransformersEngine(manifest, files[0], by_kind(files[1:]).get("mtp"))
    models = load_models(*files)
    yield "step", EagerEngine(manifest, make_steps(replace(plan, kv="float32"), models, Plain())[0])
    recipes = (plan.recipes.of(part) for part in ("target", "drafter", "embedder"))
    if plan.kv == "int8" or any(rule.dtype != "float32" for recipe in recipes for rule in recipe.rule):
        steps, _ = make_steps(plan, models, Plain())
        backend_of(plan).quantize_steps(steps, plan.recipes)
        yield "quantized step", EagerEngine(manifest, steps)


def eager_pair(
    target: Checkpoint, *drafters: Checkpoint, context: int, drafts: int = 4, early_exit: tuple[int, ...] = ()
) -> EagerEngine:
    """Float steps as an engine in torch, without a bundle: for checkpoints that are still to change.

    One prefill, 64 tokens wide, or as wide as the context.
    """
    check_pair(target, *drafters)
    float32 = Recipe(name="f32", rule=())
    plan = Plan(
        target=target.folder,
        drafters=tuple(drafter.folder for drafter in drafters),
        out=Path(),
        recipes=Recipes(float32, float32, float32),
        context=context,
        prefill=(min(64, context),),
        verify=(drafts + 1,),
        early_exit=early_exit,
    )
    models = load_models(target, *drafters)
    steps, layout = make_steps(plan, models, Plain())
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        backend=plan.backend,
        context_length=context,
        vocab_size=target.text_config.vocab_size,
        kv=layout.layers,
        graphs=tuple(step.spec for step in steps),
        parts={},
        drafters=describe(plan, models.target, models.drafters),
        tokens=target.tokens(),
        recipe={},
        source=sources_of(target, *drafters),
        versions={},
        files={},
        takes_back=takes_back(tuple(step.spec for step in steps), layout),
    )
    return EagerEngine(manifest, steps)


def plan_of(manifest: Manifest, target: Path, drafters: Sequence[Path]) -> Plan:
    """The plan that a bundle was made by."""
    recipes = {part: Recipe.model_validate(recipe) for part, recipe in manifest.recipe.items()}
    mtp, early_exit = manifest.drafters.mtp, manifest.drafters.early_exit
    verify = [graph.width for graph in manifest.graphs if graph.role == "verify"]
    return Plan(
        target=target,
        drafters=tuple(drafters),
        out=Path(),
        recipes=Recipes(**recipes),
        backend=manifest.backend,
        device=manifest.device,
        context=manifest.context_length,
        prefill=tuple(graph.width for graph in manifest.graphs_of("prefill")),
        verify=tuple(verify),
        head=mtp.head if mtp else "auto",
        position=mtp.position if mtp else "pending",
        kv="int8" if any(layer.steps for layer in manifest.kv) else "float32",
        early_exit=(early_exit.layers, *early_exit.further) if early_exit else (),
    )
