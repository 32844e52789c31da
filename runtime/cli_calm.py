"""`pocketdraft calm`: how early tokens may leave, certified on texts. Lossy: nothing does unless `run --calm` asks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import terminal
from .calm import Consistency
from .engine import open_engine
from .errors import PocketdraftError
from .leaving import certify, write_calm
from .options import Bundle, Json, Quiet, Threads, at_least
from .prompts import read_prompts
from .text import Tokenizer


def calm(
    bundle: Bundle,
    prompts: Annotated[Path | None, typer.Option(help="JSONL with a `text` a line; default: the embedded set.")] = None,
    consistency: Annotated[
        Consistency,
        typer.Option(help="textual: with the target's own text; risk: with the `reference` of each line of --prompts."),
    ] = "textual",
    delta: Annotated[float, typer.Option(help="The most that texts may differ by on average, 0 to 1.")] = 0.1,
    epsilon: Annotated[float, typer.Option(help="The chance that they differ by more.")] = 0.05,
    measure: Annotated[
        Literal["gap", "classifier"],
        typer.Option(help="How sure an exit is: by its two best tokens, or as its classifier says (trained exits)."),
    ] = "gap",
    per_domain: Annotated[int, typer.Option(help="Prompts taken of each domain.")] = 16,
    max_tokens: Annotated[int, typer.Option(help="Tokens generated per prompt.")] = 48,
    threads: Threads = 1,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Certify how early tokens may leave the target (CALM), and write that into the bundle for `run --calm`.

    Lossy: the text changes, by no more than --delta on average with probability 1 - --epsilon. With --consistency risk
    it may change, but gets no farther than that from the references.
    """
    from .cli_numbers import embedded_prompts

    at_least(1, per_domain=per_domain, max_tokens=max_tokens)
    at_least(0, threads=threads)
    own = read_prompts(prompts or embedded_prompts(), per_domain)
    without = sum(not prompt.reference for prompt in own)
    if consistency == "risk" and without:
        raise PocketdraftError(
            f"--consistency is risk, {without} of {len(own)} prompts have no `reference`, the text that should follow; "
            "give --prompts with one in each line."
        )
    with terminal.progress(quiet or as_json) as advance:
        engine = open_engine(bundle, threads)
        tokenizer = Tokenizer(bundle / "tokenizer.json", engine.manifest.tokens.bos)
        texts = [tokenizer.encode(prompt.text) for prompt in own]
        follow = Tokenizer(bundle / "tokenizer.json", None)
        references = [follow.encode(prompt.reference) for prompt in own] if consistency == "risk" else None
        found, shares = certify(
            engine,
            texts,
            max_tokens,
            delta,
            epsilon,
            measure,
            lambda done, of: advance("Trying thresholds", done, of),
            references,
        )
    write_calm(bundle, None if found.rule.never else found)
    if as_json:
        print(json.dumps(asdict(found) | {"left_early": sum(shares.values()), "left_at": shares}))
    else:
        where = ", ".join(f"{share:.0%} after layer {layers}" for layers, share in shares.items())
        print(f"{found.sentence} {sum(shares.values()):.0%} of the tokens left early ({where}).")
