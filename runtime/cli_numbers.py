"""The commands that measure and decide: `bench`, `profile` and `tune`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import terminal
from .cli_checks import rungs
from .clock import Clock
from .clock import use as use_clock
from .errors import PocketdraftError
from .files import require_folder
from .manifest import sha256
from .options import Bundle, Json, Quiet, Threads, at_least, lengths, numbers
from .prompts import Prompt, read_prompts
from .sampling import Sampling

if TYPE_CHECKING:
    from .benchmark import Task

Prompts = Annotated[Path | None, typer.Option(help="JSONL with a `text` a line; default: the embedded set.")]
PerDomain = Annotated[int, typer.Option(help="Prompts taken of each domain.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens generated per prompt.")]


def bench(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles made by `pocketdraft export`.")],
    prompts: Prompts = None,
    per_domain: PerDomain = 16,
    max_tokens: MaxTokens = 96,
    drafts: Annotated[int, typer.Option(help="Drafts per round of the comparison.")] = 4,
    draft_lengths: Annotated[
        str | None, typer.Option("--lengths", help="Every one of these in turn: 0-16. With --out or --check: all.")
    ] = None,
    drafter: Annotated[
        str | None, typer.Option(help="Of --lengths: one, or several with commas between; default: the bundle's.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="All drafters that the bundle holds, in turn, by length.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="Of --lengths, --out and --check; 0 is greedy.")] = 0.0,
    batch: Annotated[str | None, typer.Option(help="Numbers of rows at once, too: 2,4,8.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare what the cost model predicts.")] = False,
    parity: Annotated[bool, typer.Option("--parity/--no-parity", help="Compare graphs with transformers.")] = True,
    out: Annotated[Path | None, typer.Option(help="Write all figures there, for `report`.")] = None,
    threads: Threads = 1,
    clock: Annotated[Clock, typer.Option(help="cpu: the thread's processor time, on a machine that is busy.")] = "wall",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Plain against drafted by domain, paired; several bundles in one table. The last line is JSON.

    With --lengths, --batch, --check, --compare or --out: each draft length in turn on each prompt.
    """
    if compare and drafter:
        raise PocketdraftError(f"--compare runs all drafters, --drafter is {drafter}; leave one of them out.")
    at_least(1, per_domain=per_domain, max_tokens=max_tokens)
    at_least(0, drafts=drafts, threads=threads)
    _count_by(clock, threads)
    chosen_lengths = lengths("--lengths", draft_lengths) if draft_lengths else None
    rows = numbers("--batch", batch) if batch else ()
    if out:
        require_folder(out)
    thorough = bool(chosen_lengths or rows or check or out or compare or drafter)
    if thorough and len(bundles) > 1:
        raise PocketdraftError(
            f"{len(bundles)} bundles are given; --lengths, --batch, --check, --compare, --drafter and --out take one."
        )
    chosen = (
        standard_prompts(prompts, per_domain) if thorough else read_prompts(prompts or embedded_prompts(), per_domain)
    )
    if thorough:
        from .benchmark import Task

        sampling = Sampling(temperature)
        named = () if compare else drafter.split(",") if drafter else None
        task = Task(chosen, max_tokens, threads, chosen_lengths, sampling, rows, check, named)
        _bench_lengths(bundles[0], task, parity, out, quiet, as_json)
    else:
        _compare(bundles, chosen, max_tokens, drafts, threads, quiet, as_json)


def profile(
    bundle: Bundle,
    out: Annotated[Path, typer.Option(help="The profile, a small JSON file.")] = Path("profile.json"),
    prompts: Prompts = None,
    per_domain: PerDomain = 4,
    max_tokens: MaxTokens = 96,
    threads: Threads = 1,
    clock: Annotated[Clock, typer.Option(help="cpu: the thread's processor time, on a machine that is busy.")] = "wall",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """What each graph takes on this machine, for `tune --device`. The app takes the same on a phone."""
    from .benchmark import Task, take_profile
    from .profile import write_profile

    at_least(1, per_domain=per_domain, max_tokens=max_tokens)
    at_least(0, threads=threads)
    _count_by(clock, threads)
    chosen = standard_prompts(prompts, per_domain)
    with terminal.progress(quiet or as_json) as advance:
        found = take_profile(bundle, Task(chosen, max_tokens, threads), advance)
    write_profile(found, out)
    if as_json:
        print(found.model_dump_json())
    else:
        for graph in found.graphs:
            print(f"{graph.name}: {graph.median_s * 1e3:.3f} ms")
        print(f"{out}: {len(found.graphs)} graphs on {found.device.soc or found.device.name}")


def tune(
    bundle: Bundle,
    device: Annotated[Path | None, typer.Option(help="A profile of the device; default: this machine, now.")] = None,
    prompts: Prompts = None,
    per_domain: PerDomain = 16,
    max_tokens: MaxTokens = 96,
    threads: Threads = 1,
    clock: Annotated[Clock, typer.Option(help="cpu: the thread's processor time, on a machine that is busy.")] = "wall",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Leave the bundle as it is.")] = False,
    recipes: Annotated[
        str | None, typer.Option(help="Export the drafter in each of these, f32,w8,w4, and compare tokens/s instead.")
    ] = None,
    target: Annotated[Path | None, typer.Option(help="The target checkpoint, for --recipes.")] = None,
    drafter: Annotated[Path | None, typer.Option(help="The drafter checkpoint, for --recipes.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write what --recipes found there, for `report`.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Choose drafter and draft length for a device, or off, and write the choice into the bundle.

    `run`, `chat` and the app start with it, unless they are told otherwise.
    """
    from .benchmark import Task
    from .profile import read_profile
    from .tables import print_choice
    from .tune import tune as choose
    from .tune import write_choice

    at_least(1, per_domain=per_domain, max_tokens=max_tokens)
    at_least(0, threads=threads)
    _count_by(clock, threads)
    if out and not recipes:
        raise PocketdraftError(
            f"--out is {out}, and no --recipes are there to write about; give some, or leave it out."
        )
    if out:
        require_folder(out)
    known = read_profile(device) if device else None
    chosen = standard_prompts(prompts, per_domain)
    if recipes:
        task = Task(chosen, max_tokens, threads)
        _compare_recipes(bundle, recipes.split(","), target, drafter, task, out, quiet, as_json)
        return
    with terminal.progress(quiet or as_json) as advance:
        found, used = choose(bundle, Task(chosen, max_tokens, threads), known, advance)
    tuned = found.tuned(used.device.name, sha256(device) if device else "")
    if not dry_run:
        write_choice(bundle, tuned)
    if as_json:
        print(tuned.model_dump_json())
    else:
        print_choice(bundle.resolve().name, found, used)


def _count_by(clock: Clock, threads: int) -> None:
    if clock == "cpu" and threads != 1:
        raise PocketdraftError(f"--clock is cpu, --threads is {threads}; it counts one thread: give --threads 1.")
    use_clock(clock)


def _compare_recipes(
    bundle: Path,
    recipes: Sequence[str],
    target: Path | None,
    drafter: Path | None,
    task: Task,
    out: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    from pocketdraft.export.tiny import or_embedded
    from pocketdraft.quantize.recipe import load

    from .recipes import compare
    from .results import write_results
    from .tables import print_recipes

    for recipe in recipes:
        load(recipe)
    with terminal.progress(quiet or as_json) as advance:
        pair = or_embedded(target, [drafter] if drafter else [])
        found = compare(bundle, recipes, pair, task, advance)
    if out:
        write_results(found, out)
    if as_json:
        print(found.model_dump_json())
    else:
        print_recipes(found)


def _compare(
    bundles: Sequence[Path],
    chosen: Sequence[Prompt],
    max_tokens: int,
    drafts: int,
    threads: int,
    quiet: bool,
    as_json: bool,
) -> None:
    from . import report
    from .compare import bench_bundle

    with terminal.progress(quiet or as_json) as advance:
        found = [bench_bundle(one, chosen, max_tokens, drafts, threads, rungs, advance) for one in bundles]
    if not as_json:
        report.print_bench(found[0].domains, found[0].litert_lm, drafts, threads)
        if len(found) > 1:
            report.print_comparison(found)
    print(json.dumps(report.summarize(found)))
    if not all(one.passed for one in found):
        raise typer.Exit(1)


def _bench_lengths(bundle: Path, task: Task, parity: bool, out: Path | None, quiet: bool, as_json: bool) -> None:
    from .benchmark import benchmark
    from .figures import summary
    from .results import write_results
    from .tables import print_drafters, print_lengths, print_predictions, print_reading

    with terminal.progress(quiet or as_json) as advance:
        found = benchmark(bundle, task, advance, rungs if parity else None)
    if out:
        write_results(found, out)
    if not as_json:
        if task.drafters != ():  # --compare has too many rows for a screen: --out keeps them
            print_lengths(found)
        if len(found.drafters) > 1:
            print_drafters(found)
        print_reading(found)
        if task.check:
            print_predictions(found)
    print(found.model_dump_json() if as_json else json.dumps(summary(found)))
    if found.identical is False:
        raise typer.Exit(1)


def standard_prompts(own: Path | None, per_domain: int) -> list[Prompt]:
    """The user's, or the embedded ones: code, English, Spanish and JSON, French and chat."""
    from pocketdraft.export.tiny import MORE_PROMPTS_FILE

    files = [own] if own else [embedded_prompts(), MORE_PROMPTS_FILE]
    return [prompt for file in files for prompt in read_prompts(file, per_domain)]


def embedded_prompts() -> Path:
    from pocketdraft.export.tiny import PROMPTS_FILE

    return PROMPTS_FILE
