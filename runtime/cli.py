"""The command `pocketdraft`. Bad input: one sentence and exit status 2."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from . import cli_checks, terminal
from .cli_calm import calm
from .cli_export import export, plan
from .cli_numbers import Prompts, bench, embedded_prompts, profile, tune
from .cli_prepare import adapt, calibrate, mix
from .cli_report import import_results, report, sweep
from .cli_run import chat, run
from .cli_serve import serve
from .engine import open_engine
from .errors import PocketdraftError
from .files import require_folder
from .manifest import open_bundle
from .options import Bundle, DrafterLora, Json, Lora, Quiet, Threads, at_least
from .prompts import read_prompts

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(export)
app.command()(plan)
app.command()(adapt)
app.command()(calibrate)
app.command()(mix)
app.command()(run)
app.command()(chat)
app.command()(serve)
app.command()(bench)
app.command()(profile)
app.command()(tune)
app.command()(calm)
app.command()(report)
app.command()(sweep)
app.command("import")(import_results)


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
def validate(
    bundle: Bundle,
    target: Annotated[Path | None, typer.Option(help="The target checkpoint, for the parity ladder.")] = None,
    drafter: Annotated[list[Path] | None, typer.Option(help="A drafter's checkpoint; may be repeated.")] = None,
    lora: Lora = None,
    drafter_lora: DrafterLora = None,
    prompts: Prompts = None,
    per_domain: Annotated[int, typer.Option(help="Prompts taken of each domain.")] = 2,
    max_tokens: Annotated[int, typer.Option(help="Tokens generated per prompt.")] = 64,
    threads: Threads = 1,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check parity, losslessness and LiteRT-LM's own output. Exit status 1 if something differs."""
    from .report import print_validation
    from .validate import validate as check

    at_least(1, per_domain=per_domain, max_tokens=max_tokens)
    at_least(0, threads=threads)

    with terminal.progress(quiet or as_json) as advance:
        engine = open_engine(bundle, threads)
        texts = [prompt.text for prompt in read_prompts(prompts or embedded_prompts(), per_domain)]
        advance("Reading checkpoints", 0, 1)
        rungs = cli_checks.rungs(engine.manifest, target, drafter or (), lora or (), drafter_lora or ())
        found = check(bundle, engine, texts, max_tokens, rungs, lambda what: advance(what, 0, 1))
    print(json.dumps(found.to_json())) if as_json else print_validation(found, bundle)
    if not found.passed:
        raise typer.Exit(1)


@app.command()
def inspect(bundle: Bundle, as_json: Json = False) -> None:
    """Graphs, sizes, dtypes and recipe of a bundle."""
    from .report import print_manifest

    manifest = open_bundle(bundle)
    print(manifest.dump()) if as_json else print_manifest(manifest, bundle)


@app.command()
def push(
    bundle: Bundle,
    serial: Annotated[str | None, typer.Option(help="The phone's, where adb sees several.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Copy a bundle to a phone over adb; started again, it goes on where it was interrupted."""
    from .push import push as send

    with terminal.progress(quiet or as_json) as advance:
        found = send(bundle, serial, advance)
    if as_json:
        print(json.dumps({"place": found.place, "bytes": found.size, "sent": found.sent}))
    else:
        print(f"{found.place}: {found.size / 1e6:.1f} MB, of which {found.sent / 1e6:.1f} MB were sent now")


@app.command()
def phone_bench(
    bundle: Bundle,
    out: Annotated[Path, typer.Option(help="Where the profile goes.")] = Path("profile.json"),
    serial: Annotated[str | None, typer.Option(help="The phone's, where adb sees several.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run the demo app's benchmark on a bundle that was pushed, and fetch the phone's profile."""
    from .phone_bench import phone_bench as measure
    from .profile import write_profile

    require_folder(out)
    with terminal.progress(quiet or as_json) as advance:
        profile = measure(bundle, serial, advance)
    write_profile(profile, out)
    if as_json:
        print(profile.dump(), end="")
        return
    for speed in profile.speeds:
        print(f"{speed.note}: {speed.plain_tokens_per_s:.1f} tokens/s plain, {speed.tokens_per_s:.1f} drafted")
    print(f"{out}: the profile of {profile.device.name}")
