"""`pocketdraft export|validate|run|bench|inspect`. Bad input ends with one sentence and exit status 2."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from . import terminal
from .engine import Engine, open_engine
from .errors import PocketdraftError
from .manifest import Backend, Device, Manifest, open_bundle
from .prompts import read_prompts
from .session import open_session
from .target import Target
from .text import Tokenizer

if TYPE_CHECKING:
    from pocketdraft.export.plan import Plan

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Bundle = Annotated[Path, typer.Argument(help="A bundle made by `pocketdraft export`.")]
Position = Literal["pending", "last_cached"]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")]
Threads = Annotated[int, typer.Option(help="Threads for the graphs; 0 leaves it to the backend.")]
Prompts = Annotated[Path | None, typer.Option(help="JSONL with a `text` a line; default: the embedded set.")]


def main() -> None:
    terminal.silence_native_code()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where a full disk or a reader gone can still be told
    except PocketdraftError as error:
        print("pocketdraft:", " ".join(str(error).splitlines()), file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        terminal.drop_output()
        sys.exit(1)
    except OSError as error:
        terminal.drop_output()
        what = error.filename or "standard output"
        print(f"pocketdraft: Cannot read or write {what}: {error.strerror or error}.", file=sys.stderr)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def about(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Export a target and its drafter to the phone, and know beforehand that they agree."""
    if version:
        print(f"pocketdraft {metadata.version('pocketdraft')}")
        raise typer.Exit


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="Folder of the new bundle, or NAME.litertlm for the phone's file alone.")],
    target: Annotated[Path | None, typer.Option(help="Target checkpoint; default: the embedded one.")] = None,
    drafter: Annotated[Path | None, typer.Option(help="Drafter checkpoint; default: the embedded one.")] = None,
    backend: Annotated[
        Literal[Backend, "all"], typer.Option(help="The phone's runtime; all: a folder each.")
    ] = "litert",
    device: Annotated[Device, typer.Option(help="What LiteRT-LM will run the graphs on.")] = "cpu",
    recipe: Annotated[
        str, typer.Option(help="f32, w8, w4, mixed, a .toml file, or own: what is quantized already stays so.")
    ] = "mixed",
    drafter_recipe: Annotated[str | None, typer.Option(help="Another recipe for the drafter.")] = None,
    embedder_recipe: Annotated[str | None, typer.Option(help="Another recipe for the embedders.")] = None,
    context: Annotated[int, typer.Option(help="Cache slots: prompt and output together.")] = 512,
    prefill: Annotated[str, typer.Option(help="Widths of the prefill graphs.")] = "16,128",
    drafts: Annotated[str, typer.Option(help="Draft lengths to verify; the first is LiteRT-LM's.")] = "4,1,2,8",
    head: Annotated[Literal["auto", "dense", "centroid"], typer.Option(help="The drafter's head.")] = "auto",
    position: Annotated[Position, typer.Option(help="The position that the drafter was trained at.")] = "pending",
    calibration: Annotated[
        Path | None, typer.Option(help="JSONL of texts for rules with method = 'gptq': writes OUT.calibrated first.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Export a checkpoint pair to a phone bundle."""
    started = time.perf_counter()
    from pocketdraft.export import plan, staging
    from pocketdraft.export.isolated import build_isolated
    from pocketdraft.export.tiny import DRAFTER_DIR, TARGET_DIR
    from pocketdraft.quantize import recipe as recipes

    plan.check_device(device, backend)
    base = "mixed" if recipe == "own" else recipe
    wanted = plan.Plan(
        target=target or TARGET_DIR,
        drafter=drafter or DRAFTER_DIR,
        out=out,
        recipes=plan.Recipes(
            target=recipes.load(base),
            drafter=recipes.load(drafter_recipe or base),
            embedder=recipes.load(embedder_recipe or base),
        ),
        backend="litert" if backend == "all" else backend,
        device=device,
        context=context,
        prefill=_numbers("--prefill", prefill),
        verify=tuple(count + 1 for count in _numbers("--drafts", drafts)),
        head=head,
        position=position,
    )
    if recipe == "own":
        from pocketdraft.export.own_recipe import with_own_recipe

        wanted = with_own_recipe(wanted)
    plans = [wanted]
    if backend == "all":
        plans = [replace(wanted, backend=one, out=out / one) for one in get_args(Backend)]
    for one in plans:
        staging.check_out(one.out, single=one.out.suffix == ".litertlm")
    if calibration is not None:
        folder = _calibrate(wanted, calibration, quiet or as_json)
        plans = [replace(one, target=folder / "target", drafter=folder / "drafter") for one in plans]
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


def _calibrate(wanted: Plan, texts: Path, quiet: bool) -> Path:
    """Writes the calibrated pair beside the bundle and gives its folder."""
    from pocketdraft.export.calibrate import calibrate
    from pocketdraft.export.checkpoint import Checkpoint

    folder = wanted.out.with_name(f"{wanted.out.name}.calibrated")
    files = Checkpoint.open(wanted.target)
    tokenizer = Tokenizer(files.tokenizer_file, files.tokens().bos)
    tokens = [tokenizer.encode(prompt.text) for prompt in read_prompts(texts)]
    with terminal.progress(quiet) as advance:
        calibrate(replace(wanted, out=folder), tokens, advance)
    return folder


@app.command()
def validate(
    bundle: Bundle,
    target: Annotated[Path | None, typer.Option(help="The target checkpoint, for the parity ladder.")] = None,
    drafter: Annotated[Path | None, typer.Option(help="The drafter checkpoint.")] = None,
    prompts: Prompts = None,
    per_domain: Annotated[int, typer.Option(help="Prompts taken of each domain.")] = 2,
    max_tokens: Annotated[int, typer.Option(help="Tokens generated per prompt.")] = 64,
    threads: Threads = 1,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check parity, losslessness and LiteRT-LM's own output. Exit status 1 if something differs."""
    from . import report
    from .validate import validate as check

    _at_least(1, per_domain=per_domain, max_tokens=max_tokens)
    _at_least(0, threads=threads)

    with terminal.progress(quiet or as_json) as advance:
        engine = open_engine(bundle, threads)
        texts = [prompt.text for prompt in read_prompts(prompts or _embedded_prompts(), per_domain)]
        advance("Reading checkpoints", 0, 1)
        rungs = _rungs(engine.manifest, target, drafter)
        found = check(bundle, engine, texts, max_tokens, rungs, lambda what: advance(what, 0, 1))
    print(json.dumps(found.to_json())) if as_json else report.print_validation(found, bundle)
    if not found.passed:
        raise typer.Exit(1)


@app.command()
def run(
    bundle: Bundle,
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 128,
    drafter: Annotated[str, typer.Option(help="mtp, prompt_lookup or none.")] = "mtp",
    drafts: Annotated[int, typer.Option(help="Drafts per round.")] = 4,
    threads: Threads = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Continue a prompt, streaming; then the same without drafts, to compare."""
    from . import report

    _at_least(1, max_tokens=max_tokens)
    _at_least(0, drafts=drafts, threads=threads)

    with terminal.progress(quiet or as_json) as advance:
        advance("Opening the bundle", 0, 1)
        engine, tokenizer = _open(bundle, threads)
    ids, target = tokenizer.encode(prompt), Target(engine)
    session, stream, text = open_session(engine, drafter, drafts, target), tokenizer.stream(), ""
    drafted: list[int] = []
    for emitted in session.generate(ids, max_tokens):
        drafted.extend(emitted.tokens)
        text += _show(stream.feed(emitted.tokens), as_json)
    text += _show(stream.finish(), as_json)
    plain = open_session(engine, "none", 0, target)
    plain_tokens = [token for emitted in plain.generate(ids, max_tokens) for token in emitted.tokens]
    result = {
        "text": text,
        "finish": session.context.finish,
        "drafter": drafter,
        "identical": plain_tokens == drafted,
        "plain_tokens_per_s": round(plain.stats.tokens_per_s, 1),
        "drafted_tokens_per_s": round(session.stats.tokens_per_s, 1),
        "stats": session.stats.to_json(),
    }
    print(json.dumps(result)) if as_json else report.print_run(result, quiet)


@app.command()
def bench(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles made by `pocketdraft export`.")],
    prompts: Prompts = None,
    per_domain: Annotated[int, typer.Option(help="Prompts taken of each domain.")] = 16,
    max_tokens: Annotated[int, typer.Option(help="Tokens generated per prompt.")] = 96,
    drafts: Annotated[int, typer.Option(help="Drafts per round.")] = 4,
    threads: Threads = 1,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Plain against drafted by domain, paired; several bundles in one table. The last line is JSON."""
    from . import report
    from .compare import bench_bundle

    _at_least(1, per_domain=per_domain, max_tokens=max_tokens)
    _at_least(0, drafts=drafts, threads=threads)
    with terminal.progress(quiet or as_json) as advance:
        chosen = read_prompts(prompts or _embedded_prompts(), per_domain)
        found = [
            bench_bundle(one, chosen, max_tokens, drafts, threads, lambda m: _rungs(m, None, None), advance)
            for one in bundles
        ]
    if not as_json:
        report.print_bench(found[0].domains, found[0].litert_lm, drafts, threads)
        if len(found) > 1:
            report.print_comparison(found)
    print(json.dumps(report.summarize(found)))
    if not all(one.passed for one in found):
        raise typer.Exit(1)


@app.command()
def inspect(bundle: Bundle, as_json: Json = False) -> None:
    """Graphs, sizes, dtypes and recipe of a bundle."""
    from . import report

    manifest = open_bundle(bundle)
    print(manifest.dump()) if as_json else report.print_manifest(manifest, bundle)


def _show(piece: str, as_json: bool) -> str:
    if not as_json:
        print(piece, end="", flush=True)
    return piece


def _open(bundle: Path, threads: int) -> tuple[Engine, Tokenizer]:
    engine = open_engine(bundle, threads)
    return engine, Tokenizer(bundle / "tokenizer.json", engine.manifest.tokens.bos)


def _rungs(manifest: Manifest, target: Path | None, drafter: Path | None):  # type: ignore[no-untyped-def]
    """The torch rungs of the ladder, or None where torch or the checkpoints are not at hand."""
    try:
        from pocketdraft.export import rungs
    except ModuleNotFoundError:
        return None
    folders = rungs.find_checkpoints(manifest, target, drafter)
    return rungs.rungs(manifest, *folders) if folders else None


def _embedded_prompts() -> Path:
    from pocketdraft.export.tiny import PROMPTS_FILE

    return PROMPTS_FILE


def _numbers(option: str, text: str) -> tuple[int, ...]:
    words = text.split(",")
    numbers = tuple(int(word) for word in words if word.strip().isdecimal())
    if len(numbers) < len(words) or len(set(numbers)) < len(words) or 0 in numbers:
        raise PocketdraftError(f"{option} is {text!r}; give distinct positive numbers with commas between: 4,1,2,8.")
    return numbers


def _at_least(least: int, **options: int) -> None:
    for name, value in options.items():
        if value < least:
            raise PocketdraftError(f"--{name.replace('_', '-')} is {value}; give at least {least}.")
