"""`pocketdraft export|plan|adapt`: what comes before a bundle. `export` and torch are imported when they run."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from . import terminal
from .errors import PocketdraftError
from .manifest import Backend, Device

Target = Annotated[Path | None, typer.Option(help="Target checkpoint; default: the embedded one.")]
Drafter = Annotated[Path | None, typer.Option(help="Drafter checkpoint; default: the embedded one.")]
Lora = Annotated[list[Path] | None, typer.Option(help="A PEFT LoRA folder to merge into the target; may be repeated.")]
DrafterLora = Annotated[list[Path] | None, typer.Option(help="The same for the drafter.")]
Backends = Annotated[Literal[Backend, "all"], typer.Option(help="The phone's runtime; all: a folder each.")]
OnDevice = Annotated[Device, typer.Option(help="What LiteRT-LM will run the graphs on.")]
RecipeName = Annotated[str, typer.Option(help="f32, w8, w4, w4e2, mixed, or a .toml file.")]
DrafterRecipe = Annotated[str | None, typer.Option(help="Another recipe for the drafter.")]
EmbedderRecipe = Annotated[str | None, typer.Option(help="Another recipe for the embedders.")]
Context = Annotated[int, typer.Option(help="Cache slots: prompt and output together.")]
Prefill = Annotated[str, typer.Option(help="Widths of the prefill graphs.")]
Drafts = Annotated[str, typer.Option(help="Draft lengths to verify; the first is LiteRT-LM's.")]
Head = Annotated[Literal["auto", "dense", "centroid"], typer.Option(help="The drafter's head.")]
Position = Annotated[
    Literal["pending", "last_cached"], typer.Option(help="The position that the drafter was trained at.")
]
Memory = Annotated[float | None, typer.Option(help="GB, else all there is; an export that would take more is refused.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")]


def export(
    out: Annotated[Path, typer.Option(help="Folder of the new bundle, or NAME.litertlm for the phone's file alone.")],
    target: Target = None,
    drafter: Drafter = None,
    lora: Lora = None,
    drafter_lora: DrafterLora = None,
    backend: Backends = "litert",
    device: OnDevice = "cpu",
    recipe: RecipeName = "mixed",
    drafter_recipe: DrafterRecipe = None,
    embedder_recipe: EmbedderRecipe = None,
    context: Context = 512,
    prefill: Prefill = "16,128",
    drafts: Drafts = "4,1,2,8",
    head: Head = "auto",
    position: Position = "pending",
    max_memory: Memory = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Export a checkpoint pair to a phone bundle."""
    started = time.perf_counter()
    from pocketdraft.export import staging
    from pocketdraft.export.isolated import build_isolated
    from pocketdraft.export.plan import Plan, check_device
    from pocketdraft.export.tiny import DRAFTER_DIR, TARGET_DIR

    check_device(device, backend)
    wanted = Plan(
        target=target or TARGET_DIR,
        drafter=drafter or DRAFTER_DIR,
        out=out,
        recipes=_recipes(recipe, drafter_recipe, embedder_recipe),
        backend="litert" if backend == "all" else backend,
        device=device,
        context=context,
        prefill=_numbers("--prefill", prefill),
        verify=tuple(count + 1 for count in _numbers("--drafts", drafts)),
        head=head,
        position=position,
        lora=tuple(lora or ()),
        drafter_lora=tuple(drafter_lora or ()),
        max_memory=_gigabytes(max_memory),
    )
    plans = [wanted]
    if backend == "all":
        plans = [replace(wanted, backend=one, out=out / one) for one in get_args(Backend)]
    for one in plans:
        staging.check_out(one.out, single=one.out.suffix == ".litertlm")
    with terminal.progress(quiet or as_json) as advance:
        try:
            manifests = build_isolated(plans, advance)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    seconds = round(time.perf_counter() - started, 1)
    for one, manifest in zip(plans, manifests, strict=True):
        result = {"out": str(one.out), "bytes": manifest.size, "seconds": seconds, "graphs": len(manifest.graphs)}
        if as_json:
            print(json.dumps(result))
        else:
            print(
                f"{one.out}: {len(manifest.graphs)} graphs, {manifest.size / 1e6:.1f} MB, exported in {seconds:.0f} s"
            )


def plan(
    size: Annotated[str | None, typer.Option(help="One of Google's: e2b, e4b, 12b, 26b-a4b or 31b.")] = None,
    target: Annotated[Path | None, typer.Option(help="Folder with its config.json; no weights needed.")] = None,
    drafter: Annotated[Path | None, typer.Option(help="The same for the drafter.")] = None,
    backend: Annotated[Backend, typer.Option(help="The phone's runtime.")] = "litert",
    device: OnDevice = "cpu",
    recipe: RecipeName = "mixed",
    drafter_recipe: DrafterRecipe = None,
    embedder_recipe: EmbedderRecipe = None,
    context: Context = 4096,
    prefill: Prefill = "16,128",
    drafts: Drafts = "4,1,2,8",
    head: Head = "auto",
    max_memory: Memory = None,
    as_json: Json = False,
) -> None:
    """What an export will take and give: graphs, sizes, memory, time and a phone's limits, without reading weights.

    Exit status 1 if a limit is exceeded.
    """
    from . import report

    with terminal.progress(quiet=True):
        from pocketdraft.export.estimate import check_memory, configs_of, estimate
        from pocketdraft.export.plan import Plan

        configs = configs_of(size, target, drafter)
        wanted = Plan(
            target=target or Path(),
            drafter=drafter or Path(),
            out=Path(),
            recipes=_recipes(recipe, drafter_recipe, embedder_recipe),
            backend=backend,
            device=device,
            context=context,
            prefill=_numbers("--prefill", prefill),
            verify=tuple(count + 1 for count in _numbers("--drafts", drafts)),
            head=head,
            max_memory=_gigabytes(max_memory),
        )
        found = estimate(wanted, *configs)
        if max_memory is not None:
            check_memory(wanted, found)
    print(json.dumps(found.to_json())) if as_json else report.print_estimate(found)
    if not all(limit.kept for limit in found.limits):
        raise typer.Exit(1)


def adapt(
    prompts: Annotated[
        Path, typer.Option(help="JSONL with a `text` a line: the prompts that the target is used with.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new drafter checkpoint.")],
    target: Annotated[Path | None, typer.Option(help="The fine-tuned target; default: the embedded one.")] = None,
    drafter: Annotated[Path | None, typer.Option(help="Drafter checkpoint; default: the embedded one.")] = None,
    lora: Lora = None,
    minutes: Annotated[float, typer.Option(help="Time for writing text and training.")] = 5.0,
    steps: Annotated[int | None, typer.Option(help="Stop the training after so many steps.")] = None,
    context: Annotated[int, typer.Option(help="Tokens of a prompt and what the target writes after it.")] = 512,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where torch runs.")] = "cpu",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Re-tune a drafter to its fine-tuned target, on text that the target writes from your prompts."""
    from . import adaptation

    at_least(1, steps=1 if steps is None else steps, context=context)
    found = adaptation.run(target, drafter, prompts, out, lora or (), minutes, steps, context, device, quiet or as_json)
    print(json.dumps(found)) if as_json else adaptation.show(found)


def _recipes(target: str, drafter: str | None, embedder: str | None):  # type: ignore[no-untyped-def]
    from pocketdraft.export.plan import Recipes
    from pocketdraft.quantize.recipe import load

    return Recipes(target=load(target), drafter=load(drafter or target), embedder=load(embedder or target))


def _gigabytes(said: float | None) -> float | None:
    if said is not None and said <= 0:
        raise PocketdraftError(f"--max-memory is {said}; give a positive number of GB.")
    return said and said * 1e9


def _numbers(option: str, text: str) -> tuple[int, ...]:
    words = text.split(",")
    numbers = tuple(int(word) for word in words if word.strip().isdecimal())
    if len(numbers) < len(words) or len(set(numbers)) < len(words) or 0 in numbers:
        raise PocketdraftError(f"{option} is {text!r}; give distinct positive numbers with commas between: 4,1,2,8.")
    return numbers


def at_least(least: int, **options: int) -> None:
    for name, value in options.items():
        if value < least:
            raise PocketdraftError(f"--{name.replace('_', '-')} is {value}; give at least {least}.")
