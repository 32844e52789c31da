"""`pocketdraft adapt|calibrate|mix`: what may come before an export. Torch is imported when they run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import adaptation, terminal
from .errors import PocketdraftError
from .options import (
    Drafter,
    DrafterLora,
    DrafterRecipe,
    EmbedderRecipe,
    Head,
    Json,
    Lora,
    Position,
    Quiet,
    RecipeName,
    Target,
    at_least,
    recipes_of,
)
from .prompts import read_prompts
from .text import Tokenizer

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
    out: Annotated[Path, typer.Option(help="Folder of the new pair: OUT/target and OUT/drafter, to export.")],
    target: Target = None,
    drafter: Drafter = None,
    lora: Lora = None,
    drafter_lora: DrafterLora = None,
    recipe: RecipeName = "mixed",
    drafter_recipe: DrafterRecipe = None,
    embedder_recipe: EmbedderRecipe = None,
    head: Head = "auto",
    position: Position = "pending",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Round a pair's weights to what keeps its outputs on your texts, where the recipe says method = "gptq".

    Also notes how far keys and values reach, which `export --kv int8` needs.
    """
    started = time.perf_counter()
    with terminal.progress(quiet or as_json) as advance:
        advance("Loading torch", 0, 1)
        from pocketdraft.export.calibrate import calibrate as run
        from pocketdraft.export.plan import Plan
        from pocketdraft.export.tiny import DRAFTER_DIR, TARGET_DIR

        wanted = Plan(
            target=target or TARGET_DIR,
            drafter=drafter or DRAFTER_DIR,
            out=out,
            recipes=recipes_of(recipe, drafter_recipe, embedder_recipe),
            head=head,
            position=position,
            lora=tuple(lora or ()),
            drafter_lora=tuple(drafter_lora or ()),
        )
        found = run(wanted, _tokens(wanted.target, texts), advance)
    seconds = round(time.perf_counter() - started, 1)
    if as_json:
        print(json.dumps({"out": str(out), "seconds": seconds, **found}))
    else:
        what = (
            f"{found['weights']} weights calibrated and the reach of K/V noted"
            if found["weights"]
            else "reach of K/V noted"
        )
        print(f"{out}: {what} on {found['tokens']:,} tokens in {seconds:.0f} s")
        print(f"Export it: pocketdraft export --target {out}/target --drafter {out}/drafter --recipe {recipe} ...")


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

        folder, otherwise = target or TARGET_DIR, load(recipe)
        checkpoint = Checkpoint.open(folder, tuple(lora or ()))
        found = mixed(checkpoint, _tokens(folder, texts), bits, otherwise, advance)
    out.write_text(found.to_toml())
    seconds = round(time.perf_counter() - started, 1)
    int8 = sum(rule.dtype == "int8" for rule in found.rule)
    if as_json:
        print(json.dumps({"out": str(out), "rules": len(found.rule), "int8": int8, "seconds": seconds}))
    else:
        print(f"{out}: {len(found.rule)} rules, {int8} of them int8, measured in {seconds:.0f} s")


def _tokens(target: Path, texts: Path) -> list[list[int]]:
    """As a prompt has them."""
    from pocketdraft.export.checkpoint import Checkpoint

    files = Checkpoint.open(target)
    tokenizer = Tokenizer(files.tokenizer_file, files.tokens().bos)
    return [tokenizer.encode(prompt.text) for prompt in read_prompts(texts)]
