"""`pocketdraft export|plan`. `export` and torch are imported when they run."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args

import typer

from . import terminal
from .errors import PocketdraftError
from .manifest import Backend
from .options import (
    OWN,
    Backends,
    Context,
    DrafterLora,
    DrafterRecipe,
    Drafters,
    Drafts,
    EarlyExit,
    EmbedderRecipe,
    Head,
    Json,
    KVType,
    Lora,
    Memory,
    OnDevice,
    Position,
    Prefill,
    Quiet,
    RecipeName,
    Target,
    gigabytes,
    numbers,
    recipes_of,
)


def export(
    out: Annotated[Path, typer.Option(help="Folder of the new bundle, or NAME.litertlm for the phone's file alone.")],
    target: Target = None,
    drafter: Drafters = None,
    early_exit: EarlyExit = None,
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
    kv: KVType = "float32",
    max_memory: Memory = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Export a target and its drafters to a phone bundle."""
    started = time.perf_counter()
    from pocketdraft.export import staging
    from pocketdraft.export.isolated import build_isolated
    from pocketdraft.export.plan import Plan, check_device
    from pocketdraft.export.tiny import or_embedded

    check_device(device, backend)
    folders = or_embedded(target, drafter or ())
    wanted = Plan(
        target=folders[0],
        drafters=folders[1],
        out=out,
        recipes=recipes_of(recipe, drafter_recipe, embedder_recipe),
        backend="litert" if backend == "all" else backend,
        device=device,
        context=context,
        prefill=numbers("--prefill", prefill),
        verify=tuple(count + 1 for count in numbers("--drafts", drafts)),
        head=head,
        position=position,
        kv=kv,
        lora=tuple(lora or ()),
        drafter_lora=tuple(drafter_lora or ()),
        max_memory=gigabytes(max_memory),
        early_exit=numbers("--early-exit", early_exit) if early_exit is not None else (),
    )
    if recipe == OWN:
        from pocketdraft.export.own_recipe import with_own_recipe

        wanted = with_own_recipe(wanted)
    plans = [wanted]
    if backend == "all":
        plans = [replace(wanted, backend=one, out=out / one) for one in get_args(Backend)]
    for one in plans:
        staging.check_out(one.out, single=one.out.suffix == ".litertlm")
    with terminal.progress(quiet or as_json) as advance:
        manifests = build_isolated(plans, advance)
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
    drafter: Annotated[list[Path] | None, typer.Option(help="The same for a drafter; may be repeated.")] = None,
    early_exit: EarlyExit = None,
    backend: Annotated[Backend, typer.Option(help="The phone's runtime.")] = "litert",
    device: OnDevice = "cpu",
    recipe: RecipeName = "mixed",
    drafter_recipe: DrafterRecipe = None,
    embedder_recipe: EmbedderRecipe = None,
    context: Context = 4096,
    prefill: Prefill = "16,128",
    drafts: Drafts = "4,1,2,8",
    head: Head = "auto",
    kv: KVType = "float32",
    max_memory: Memory = None,
    as_json: Json = False,
) -> None:
    """What an export will take and give: graphs, sizes, memory, time and a phone's limits, without reading weights.

    Exit status 1 if a limit is exceeded.
    """
    from . import report

    if recipe == OWN:
        raise PocketdraftError("--recipe is own, which looks at weights; plan reads none: give the recipe's name.")
    with terminal.progress(quiet=True):
        from pocketdraft.export.estimate import check_memory, configs_of, estimate
        from pocketdraft.export.plan import Plan

        configs = configs_of(size, target, drafter or ())
        wanted = Plan(
            target=target or Path(),
            drafters=tuple(drafter or ()),
            out=Path(),
            recipes=recipes_of(recipe, drafter_recipe, embedder_recipe),
            backend=backend,
            device=device,
            context=context,
            prefill=numbers("--prefill", prefill),
            verify=tuple(count + 1 for count in numbers("--drafts", drafts)),
            head=head,
            kv=kv,
            max_memory=gigabytes(max_memory),
            early_exit=numbers("--early-exit", early_exit) if early_exit is not None else (),
        )
        found = estimate(wanted, *configs)
        if max_memory is not None:
            check_memory(wanted, found)
    print(json.dumps(found.to_json())) if as_json else report.print_estimate(found)
    if not all(limit.kept for limit in found.limits):
        raise typer.Exit(1)
