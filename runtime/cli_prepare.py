"""`pocketdraft adapt|calibrate|mix`: what may come before an export. Torch is imported when they run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from . import adaptation, terminal
from .errors import PocketdraftError
from .options import (
    EmbedderRecipe,
    Json,
    Lora,
    Quiet,
    RecipeName,
    Target,
    at_least,
    recipes_of,
)
from .prompts import read_prompts
from .text import Tokenizer

if TYPE_CHECKING:
    from pocketdraft.export.checkpoint import Checkpoint

Texts = Annotated[Path, typer.Option(help="JSONL with a `text` a line, of the kind that the model is used for.")]


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
    at_least(1, steps=1 if steps is None else steps, context=context)
    found = adaptation.run(target, drafter, prompts, out, lora or (), minutes, steps, context, device, quiet or as_json)
    print(json.dumps(found)) if as_json else adaptation.show(found)


def calibrate(
    texts: Texts,
    out: Annotated[Path, typer.Option(help="Folder of the new target checkpoint.")],
    target: Target = None,
    lora: Lora = None,
    recipe: RecipeName = "mixed",
    embedder_recipe: EmbedderRecipe = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Round a target's int4 and int2 weights to what keeps its outputs on your texts. Export it by the same recipe.

    Also notes how far keys and values reach, which `export --kv int8` needs.
    """
    started = time.perf_counter()
    with terminal.progress(quiet or as_json) as advance:
        advance("Loading torch", 0, 1)
        from pocketdraft.export.calibrate import calibrate as run
        from pocketdraft.export.checkpoint import Checkpoint
        from pocketdraft.export.tiny import TARGET_DIR

        recipes = recipes_of(recipe, None, embedder_recipe)
        checkpoint = Checkpoint.open(target or TARGET_DIR, tuple(lora or ()))
        found = run(checkpoint, recipes, _tokens(checkpoint, texts), out, advance)
    seconds = round(time.perf_counter() - started, 1)
    if as_json:
        print(json.dumps({"out": str(out), "seconds": seconds, **found}))
    else:
        done = f"{found['weights']} weights calibrated and the reach of K/V noted"
        print(f"{out}: {done} on {found['tokens']:,} tokens in {seconds:.0f} s")


def mix(
    texts: Texts,
    bits: Annotated[float, typer.Option(help="Bits a weight that the target and its embedders may take, with scales.")],
    out: Annotated[Path, typer.Option(help="The new recipe, NAME.toml.")],
    target: Target = None,
    lora: Lora = None,
    recipe: Annotated[str, typer.Option(help="The recipe of all other weights: the drafter's.")] = "mixed",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a recipe of int4 and int8 under a budget of bits: int8 goes where int4 costs most on your texts."""
    started = time.perf_counter()
    if out.suffix != ".toml":
        raise PocketdraftError(f"--out is {out}, recipes are .toml files; give {out.with_suffix('.toml')}.")
    with terminal.progress(quiet or as_json) as advance:
        advance("Loading torch", 0, 1)
        from pocketdraft.export.checkpoint import Checkpoint
        from pocketdraft.export.sensitivity import mixed
        from pocketdraft.export.tiny import TARGET_DIR
        from pocketdraft.quantize.recipe import load

        otherwise, checkpoint = load(recipe), Checkpoint.open(target or TARGET_DIR, tuple(lora or ()))
        found = mixed(checkpoint, _tokens(checkpoint, texts), bits, otherwise, advance)
    out.write_text(found.to_toml())
    seconds = round(time.perf_counter() - started, 1)
    int8 = sum(rule.dtype == "int8" for rule in found.rule)
    if as_json:
        print(json.dumps({"out": str(out), "rules": len(found.rule), "int8": int8, "seconds": seconds}))
    else:
        print(f"{out}: {len(found.rule)} rules, {int8} of them int8, measured in {seconds:.0f} s")


def _tokens(checkpoint: Checkpoint, texts: Path) -> list[list[int]]:
    """As a prompt has them."""
    tokenizer = Tokenizer(checkpoint.tokenizer_file, checkpoint.tokens().bos)
    return [tokenizer.encode(prompt.text) for prompt in read_prompts(texts)]
