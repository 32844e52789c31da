"""The commands that let a bundle speak: `run` and `chat`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from . import n_best, terminal
from .calm import Calibration, divergence
from .chat import Chat
from .chat_template import open_template
from .constraints import open_grammars
from .draft_length import Confident, Drafts
from .drafters import default_rule
from .engine import Engine, open_engine
from .errors import PocketdraftError
from .leaving import LeavingTarget
from .options import Bundle, Json, Quiet, Threads, at_least, one_constraint, start
from .sampler import Rule, Sampler
from .sampling import Sampling
from .session import open_session
from .target import Target
from .text import Tokenizer

DrafterName = Annotated[
    str | None,
    typer.Option("--drafter", help="mtp, mtp_tree, prompt_lookup, hybrid or none; default: as tuned, or mtp."),
]
DraftsPerRound = Annotated[
    str | None,
    typer.Option(
        "--drafts", help="Drafts per round, or auto: as long as the drafter is sure enough; default: as tuned, or 4."
    ),
]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopK = Annotated[int, typer.Option(help="Draw from the k likeliest tokens; 0 is all.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest that together have p.")]
MinP = Annotated[float, typer.Option(help="Draw from those with this share of the likeliest's chance.")]
Penalty = Annotated[float, typer.Option(help="Of what has been said; 1 is none.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same text.")]
Accept = Annotated[
    Rule | None,
    typer.Option("--accept", help="exact: the text of plain decoding; rejection: its distribution, faster."),
]


def run(
    bundle: Bundle,
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 128,
    n: Annotated[int, typer.Option("--n", help="Texts to make, each with noise of its own.")] = 1,
    score: Annotated[
        str | None,
        typer.Option(help="A command that gets each text on its standard input; the first it ends with 0 for wins."),
    ] = None,
    score_timeout: Annotated[float, typer.Option(help="Seconds that the command may take for a text.")] = 60.0,
    drafter: DrafterName = None,
    drafts: DraftsPerRound = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
    rule: Accept = None,
    json_schema: Annotated[Path | None, typer.Option(help="JSON that is valid by the schema in this file.")] = None,
    regex: Annotated[str | None, typer.Option(help="Text that matches, all of it.")] = None,
    grammar: Annotated[Path | None, typer.Option(help="Text of the Lark grammar in this file.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the output; may be repeated.")] = None,
    calm: Annotated[
        bool, typer.Option("--calm", help="Let sure tokens leave early, as `pocketdraft calm` certified; lossy.")
    ] = False,
    threads: Threads = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Continue a prompt, streaming; then the same without drafts, to compare.

    With --n or --score: several texts, or the first that a command passes, and exit status 1 if it passes none.
    """
    from . import report

    at_least(1, max_tokens=max_tokens, n=n)
    at_least(0, threads=threads)
    constraint = one_constraint(json_schema, regex, grammar)
    if calm and (drafter not in (None, "none") or n > 1 or score):
        raise PocketdraftError("--calm decodes one text without drafts; leave --drafter, --n and --score out.")
    drafter = "none" if calm else drafter
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    _sampler(sampling, rule, *start(None, drafter, drafts))  # what cannot be is refused before anything is opened
    scorer = None
    if score is not None:
        output = subprocess.DEVNULL if quiet or as_json else sys.stderr.fileno()
        scorer = n_best.CommandScorer.parse(score, score_timeout, output)

    engine, tokenizer = _open(bundle, threads, quiet or as_json)
    method, count = start(engine.manifest, drafter, drafts)
    sampler = _sampler(sampling, rule, method, count)
    ids, target, output = tokenizer.encode(prompt), Target(engine), tokenizer.output(stop or ())
    if constraint:
        compiled = open_grammars(bundle, engine.manifest).compile(*constraint)
        sampler = replace(sampler, processors=(compiled.after(len(ids)),))
    if n > 1 or scorer:
        sequences = n_best.samples(target, ids, max_tokens, sampler, n, method, count)
        found = n_best.candidates(sequences, lambda: tokenizer.output(stop or ()), scorer)
        _run_several(found, n, score, quiet, as_json)
        return
    leaving = _leaving(engine) if calm else None
    session, text = open_session(engine, method, count, leaving or target, sampler), ""
    drafted: list[int] = []
    for emitted in session.generate(ids, max_tokens, output.feed):
        drafted.extend(emitted.tokens)
        text += _show(output.take(), as_json)
    text += _show(output.finish(), as_json)
    plain = open_session(engine, "none", 0, target, sampler)
    plain_rounds = plain.generate(ids, max_tokens, tokenizer.output(stop or ()).feed)
    plain_tokens = [token for emitted in plain_rounds for token in emitted.tokens]
    result = {
        "text": text,
        "finish": session.context.finish,
        "drafter": method,
        "identical": None if sampler.rejects else plain_tokens == drafted,
        "plain_tokens_per_s": round(plain.stats.tokens_per_s, 1),
        "drafted_tokens_per_s": round(session.stats.tokens_per_s, 1),
        "stats": session.stats.to_json(),
    }
    if leaving:
        result["calm"] = {
            "left_early": round(sum(leaving.shares.values()), 3),
            "left_at": {layers: round(share, 3) for layers, share in leaving.shares.items()},
            "divergence": round(divergence(drafted, plain_tokens), 3),
            **asdict(_certified(engine)),
        }
    print(json.dumps(result)) if as_json else report.print_run(result, quiet)


def _leaving(engine: Engine) -> LeavingTarget:
    return LeavingTarget(engine, _certified(engine).rule)


def _certified(engine: Engine) -> Calibration:
    if engine.manifest.calm is None:
        raise PocketdraftError(
            "--calm is given, nothing was certified for the bundle; run `pocketdraft calm` on it before."
        )
    return engine.manifest.calm


def chat(
    bundle: Bundle,
    system: Annotated[str | None, typer.Option(help="What the model is told before the first question.")] = None,
    max_tokens: Annotated[int, typer.Option(help="The most tokens of an answer.")] = 1024,
    drafter: DrafterName = None,
    drafts: DraftsPerRound = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
    rule: Accept = None,
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """Talk, by the bundle's own chat template. Ctrl-C stops an answer, Ctrl-D ends the talk."""
    at_least(1, max_tokens=max_tokens)
    at_least(0, threads=threads)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    _sampler(sampling, rule, *start(None, drafter, drafts))  # what cannot be is refused before anything is opened

    engine, tokenizer = _open(bundle, threads, quiet)
    method, count = start(engine.manifest, drafter, drafts)
    sampler = _sampler(sampling, rule, method, count)
    template = open_template(bundle, engine.manifest, tokenizer)
    talk = Chat(open_session(engine, method, count, sampler=sampler), template, tokenizer, system)
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (edits the line that `input` reads)
    while (question := _question()) is not None:
        if not question.strip():
            continue
        try:
            with contextlib.closing(talk.ask(question, max_tokens)) as pieces:
                for piece in pieces:
                    print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        except PocketdraftError as error:
            print(f"pocketdraft: {error}", file=sys.stderr)
            continue
        print()


def _question() -> str | None:
    """A line, empty after Ctrl-C; None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except KeyboardInterrupt:
        print()
        return ""
    except EOFError:
        return None


def _run_several(found: Iterator[n_best.Candidate], n: int, score: str | None, quiet: bool, as_json: bool) -> None:
    """Without a scorer all texts go to standard output; with one, the text that passed, and nothing else."""
    seen: list[n_best.Candidate] = []
    for candidate in found:
        seen.append(candidate)
        if as_json:
            continue
        if candidate.score is None:
            print(f"--- {len(seen)} of {n} ---\n{candidate.text}", flush=True)
        elif not quiet:
            print(f"{len(seen)} of {n}: {candidate.score.said}", file=sys.stderr)
    passed = seen[-1].passed
    if as_json:
        texts = [{"text": one.text, "finish": one.finish, "score": one.score and one.score.said} for one in seen]
        print(json.dumps({"chosen": len(seen) - 1 if passed else None, "candidates": texts}))
    elif passed:
        print(seen[-1].text)
    if score is None or passed:
        return
    if not as_json:
        for number, one in enumerate(seen, 1):
            print(f"--- {number} of {n}: {one.score and one.score.said} ---\n{one.text}", file=sys.stderr)
    print(f"pocketdraft: None of {n} texts passed {score}; raise --n or --temperature.", file=sys.stderr)
    raise typer.Exit(1)


def _show(piece: str, as_json: bool) -> str:
    if not as_json:
        print(piece, end="", flush=True)
    return piece


def _sampler(sampling: Sampling, rule: Rule | None, drafter: str, drafts: Drafts) -> Sampler:
    return Sampler(sampling, rule or default_rule(drafter, timed=isinstance(drafts, Confident)))


def _open(bundle: Path, threads: int, quiet: bool) -> tuple[Engine, Tokenizer]:
    with terminal.progress(quiet) as advance:
        advance("Opening the bundle", 0, 1)
        engine = open_engine(bundle, threads)
        return engine, Tokenizer(bundle / "tokenizer.json", engine.manifest.tokens.bos)
