"""In which precision a drafter should be exported: by what its drafts are worth on the device, not by their error.

A drafter's precision changes no token of the output, only how many drafts are accepted and what they take. So the
same target is exported with the drafter in each recipe, each bundle is tuned as any other, and tokens/s decide.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import host
from .benchmark import Task
from .cost import RoundCost
from .drafter_specs import MTPSpec
from .errors import PocketdraftError
from .lengths import Progress
from .manifest import MANIFEST_NAME, Manifest, read
from .results import DrafterRecipe, Precisions
from .tune import OFF, Candidate, Choice, tune


def row(recipe: str, manifest: Manifest, choice: Choice, plain_s: float) -> DrafterRecipe:
    """`plain_s` is what plain decoding takes for a token. Other drafters tell nothing of this one's precision."""
    drafted: Candidate = max(
        (one for one in choice.candidates if one.drafter == "mtp"), key=lambda one: one.gain, default=OFF
    )
    part = manifest.part_of("mtp")
    size = part.size if part else 0
    return DrafterRecipe(
        recipe=recipe,
        drafter_bytes=size,
        gain=drafted.gain,
        tokens_per_s=drafted.gain / plain_s,
        drafts=drafted.name,
        tokens_per_round=drafted.tokens,
    )


def best(rows: Sequence[DrafterRecipe]) -> DrafterRecipe:
    """The most gain, as the target is the same; of equals the smaller."""
    return max(rows, key=lambda one: (round(one.gain, 3), -one.drafter_bytes))


def compare(
    bundle: Path, recipes: Sequence[str], pair: tuple[Path, tuple[Path, ...]], task: Task, advance: Progress
) -> Precisions:
    """Bundles come to lie beside `bundle`, in a folder of its name and `.recipes`, and are kept: started again, what
    was exported is not exported again. Raises PocketdraftError."""
    folder = bundle.resolve().with_name(f"{bundle.resolve().name}.recipes")
    rows = []
    for recipe in recipes:
        out = folder / recipe
        if not (out / MANIFEST_NAME).is_file():
            folder.mkdir(exist_ok=True)
            _export(read(bundle), recipe, pair, out, advance)
        choice, profile = tune(out, replace(task, drafters=("mtp",)), None, advance)
        rows.append(row(recipe, read(out), choice, RoundCost.of(profile).seconds(0)))
    return Precisions(
        date=datetime.date.today().isoformat(),
        bundle=bundle.resolve().name,
        backend=read(bundle).backend,
        device=host.describe(),
        best=best(rows).recipe,
        recipes=tuple(rows),
    )


def _export(manifest: Manifest, recipe: str, pair: tuple[Path, tuple[Path, ...]], out: Path, advance: Progress) -> None:
    """As the bundle, but for its drafter's recipe."""
    try:
        from pocketdraft.export.isolated import build_isolated
        from pocketdraft.export.plan import Plan
    except ModuleNotFoundError as error:
        mend = "pip install 'pocketdraft[export]'"
        raise PocketdraftError(f"--recipes needs {error.name}, which is not installed: {mend}.") from error
    from .options import recipes_of

    own = {part: str(made["name"]) for part, made in manifest.recipe.items()}  # type: ignore[index]
    plan = Plan(
        target=pair[0],
        drafters=pair[1],
        out=out,
        recipes=recipes_of(own["target"], recipe, own["embedder"]),
        backend=manifest.backend,
        device=manifest.device,
        context=manifest.context_length,
        prefill=tuple(graph.width for graph in manifest.graphs_of("prefill")),
        verify=tuple(graph.width for graph in manifest.graphs if graph.role == "verify"),
    )
    build_isolated([replace(plan, position=manifest.drafters.of(MTPSpec).position)], advance)
