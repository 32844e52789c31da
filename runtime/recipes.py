"""In which precision a drafter should be exported: by what its drafts are worth on the device, not by their error.

A drafter's precision changes no token of the output, only how many drafts are accepted and what they take. So the
same target is exported with the drafter in each recipe, each bundle is tuned as any other, and tokens/s decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .benchmark import Task
from .cost import RoundCost
from .errors import PocketdraftError
from .lengths import Progress
from .manifest import MANIFEST_NAME, Manifest, read
from .tune import OFF, Candidate, Choice, tune


@dataclass(frozen=True)
class Row:
    """A drafter's recipe and the best that it can do: `gain` is over plain decoding, and less than 1 where it is better
    left off. `tokens_per_s` are those of drafting."""

    recipe: str
    drafter_bytes: int
    gain: float
    tokens_per_s: float
    drafts: str
    tokens_per_round: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def row(recipe: str, manifest: Manifest, choice: Choice, plain_s: float) -> Row:
    """`plain_s` is what plain decoding takes for a token. Other drafters tell nothing of this one's precision."""
    drafted: Candidate = max(
        (one for one in choice.candidates if one.drafter == "mtp"), key=lambda one: one.gain, default=OFF
    )
    size = manifest.parts["drafter"].size
    return Row(recipe, size, drafted.gain, drafted.gain / plain_s, drafted.name, drafted.tokens)


def best(rows: Sequence[Row]) -> Row:
    """The most gain, as the target is the same; of equals the smaller."""
    return max(rows, key=lambda one: (round(one.gain, 3), -one.drafter_bytes))


def compare(bundle: Path, recipes: Sequence[str], pair: tuple[Path, Path], task: Task, advance: Progress) -> list[Row]:
    """Bundles come to lie beside `bundle`, in a folder of its name and `.recipes`, and are kept: started again, what
    was exported is not exported again. Raises PocketdraftError."""
    folder = bundle.resolve().with_name(f"{bundle.resolve().name}.recipes")
    rows = []
    for recipe in recipes:
        out = folder / recipe
        if not (out / MANIFEST_NAME).is_file():
            folder.mkdir(exist_ok=True)
            _export(read(bundle), recipe, pair, out, advance)
        choice, profile = tune(out, task, None, advance)
        rows.append(row(recipe, read(out), choice, RoundCost.of(profile).seconds(0)))
    return rows


def _export(manifest: Manifest, recipe: str, pair: tuple[Path, Path], out: Path, advance: Progress) -> None:
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
        drafter=pair[1],
        out=out,
        recipes=recipes_of(own["target"], recipe, own["embedder"]),
        backend=manifest.backend,
        device=manifest.device,
        context=manifest.context_length,
        prefill=tuple(graph.width for graph in manifest.graphs_of("prefill")),
        verify=tuple(graph.width for graph in manifest.graphs if graph.role == "verify"),
    )
    build_isolated([replace(plan, position=manifest.drafter.position)], advance)
