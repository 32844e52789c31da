"""Options that several commands take, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from . import draft_length
from .constraints import Kind
from .draft_length import Confident, drafts_as_tuned
from .errors import PocketdraftError
from .manifest import Backend, Device, Manifest

if TYPE_CHECKING:
    from pocketdraft.export.plan import Recipes

Bundle = Annotated[Path, typer.Argument(help="A bundle made by `pocketdraft export`.")]
Threads = Annotated[int, typer.Option(help="Threads for the graphs; 0 leaves it to the backend.")]
Target = Annotated[Path | None, typer.Option(help="Target checkpoint; default: the embedded one.")]
Drafters = Annotated[
    list[Path] | None,
    typer.Option(
        "--drafter",
        help="Drafter checkpoint; may be repeated. Without --target, one of the embedded target's by kind, or all.",
    ),
]
EarlyExit = Annotated[
    str | None, typer.Option(help="The target's first so many layers draft as well. 3,5: `calm` leaves after 5 too.")
]
Lora = Annotated[list[Path] | None, typer.Option(help="A PEFT LoRA folder to merge into the target; may be repeated.")]
DrafterLora = Annotated[list[Path] | None, typer.Option(help="The same for the drafter.")]
Backends = Annotated[Literal[Backend, "all"], typer.Option(help="The phone's runtime; all: a folder each.")]
OnDevice = Annotated[Device, typer.Option(help="What LiteRT-LM will run the graphs on.")]
RecipeName = Annotated[
    str, typer.Option(help="f32, w8, w4, w4e2, mixed, a .toml file, or own: what is quantized already stays so.")
]
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
KVType = Annotated[
    Literal["float32", "int8"], typer.Option(help="Type of the K/V cache; int8 wants a target from `calibrate`.")
]
OWN = "own"


def recipes_of(target: str, drafter: str | None, embedder: str | None) -> Recipes:
    """Recipes by name; the target's serves where the others are not given. Behind "own" stands "mixed"."""
    from pocketdraft.export.plan import Recipes
    from pocketdraft.quantize.recipe import load

    base = "mixed" if target == OWN else target
    return Recipes(target=load(base), drafter=load(drafter or base), embedder=load(embedder or base))


def gigabytes(said: float | None) -> float | None:
    if said is not None and said <= 0:
        raise PocketdraftError(f"--max-memory is {said}; give a positive number of GB.")
    return said and said * 1e9


def one_constraint(json_schema: Path | None, regex: str | None, grammar: Path | None) -> tuple[Kind, str] | None:
    """Which kind was asked for, and its text. Raises PocketdraftError for two, or for a file that is no text."""
    said: dict[Kind, str | Path | None] = {"json-schema": json_schema, "regex": regex, "grammar": grammar}
    given = [(kind, value) for kind, value in said.items() if value is not None]
    if len(given) > 1:
        first, second = given[0][0], given[1][0]
        raise PocketdraftError(f"--{first} and --{second} are both given, an output has one constraint; leave one.")
    return next(((kind, _text(value) if isinstance(value, Path) else value) for kind, value in given), None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PocketdraftError(f"{path} is no UTF-8 text ({error.reason}, byte {error.start}); mend it.") from error


def start(manifest: Manifest | None, drafter: str | None, drafts: str | None) -> tuple[str, draft_length.Drafts]:
    """What was asked for; if nothing was, what the bundle was tuned to; else four drafts of the drafter it holds.

    Without a manifest yet, what would start with a bundle that is not tuned.
    """
    tuned = manifest and manifest.tuned
    if tuned and drafter is None and drafts is None:
        return tuned.drafter, drafts_as_tuned(tuned)
    default = manifest.drafters.default if manifest else "mtp"
    return drafter or default, 4 if drafts is None else drafts_of(drafts)


def drafts_of(text: str) -> int | Confident:
    if text == "auto":
        return Confident()
    if not text.isdecimal():
        raise PocketdraftError(f"--drafts is {text}; give a number, 0 or more, or auto.")
    return int(text)


def lengths(option: str, text: str) -> tuple[int, ...]:
    """Numbers and ranges, 0 among them or not: 0-4,8."""
    found: list[int] = []
    for word in text.split(","):
        first, dash, last = (part.strip() for part in word.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise PocketdraftError(f"{option} is {text!r}; give numbers or ranges with commas between: 0-4,8.")
        found += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(found))


def numbers(option: str, text: str) -> tuple[int, ...]:
    words = text.split(",")
    found = tuple(int(word) for word in words if word.strip().isdecimal())
    if len(found) < len(words) or len(set(found)) < len(words) or 0 in found:
        raise PocketdraftError(f"{option} is {text!r}; give distinct positive numbers with commas between: 4,1,2,8.")
    return found


def at_least(least: int, **options: int) -> None:
    for name, value in options.items():
        if value < least:
            raise PocketdraftError(f"--{name.replace('_', '-')} is {value}; give at least {least}.")
