"""The commands that put figures together: `report`, `import` and `sweep`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import Quiet, at_least
from .profile import Profile, reported
from .results import Imports, Precisions, Results, read_results, write_results

Where = Literal["local", "ray"]


def report(
    results: Annotated[list[Path], typer.Argument(help="What bench, tune --recipes, profile and import wrote.")],
    out: Annotated[Path, typer.Option(help="The page; the same goes beside it as .md and .json.")] = Path(
        "report.html"
    ),
    public: Annotated[
        bool, typer.Option("--public/--no-public", help="Add public figures, marked as reported.")
    ] = True,
) -> None:
    """One page of graphs and tables that needs nothing else: no network, no server."""
    from .sections import report as make

    found = [read_results(path) for path in results]
    page = make(
        [one for one in found if isinstance(one, Results)],
        [one for one in found if isinstance(one, Imports)],
        [one for one in found if isinstance(one, Profile)] + (reported() if public else []),
        [one for one in found if isinstance(one, Precisions)],
    )
    for path in page.write(out, results):
        print(path)


def import_results(
    files: Annotated[list[Path], typer.Argument(help="Output of LiteRT-LM's, vLLM's or llama.cpp's benchmark.")],
    out: Annotated[Path, typer.Option(help="Where to write it, for `report`.")] = Path("imported.json"),
    quiet: Quiet = False,
) -> None:
    """Read other programs' benchmarks, to stand beside these in one table."""
    from .imports import read_foreign

    found = [read_foreign(path) for path in files]
    rows = tuple(row for one in found for row in one.rows)
    write_results(Imports(source=", ".join(one.source for one in found), rows=rows), out)
    if not quiet:
        for row in rows:
            speed = "" if row.tokens_per_s is None else f" {row.tokens_per_s:,.1f} tokens/s"
            print(f"{row.tool} {row.model} {row.what}:{speed}")


def sweep(
    plan: Annotated[Path, typer.Argument(help="A YAML file: see the head of `runtime/sweep.py`.")],
    on: Annotated[
        Where, typer.Option(help="local: processes here; ray: a Ray cluster that shares the folder.")
    ] = "local",
    workers: Annotated[int, typer.Option(help="Points at a time. Those side by side slow each other down.")] = 1,
    quiet: Quiet = False,
) -> None:
    """Measure models by recipes, drafters and lengths; started again, it goes on. Exit status 1 if a point fails."""
    from .sweep import exports, points, read_sweep, run

    at_least(1, workers=workers)
    found = read_sweep(plan)
    failed = 0
    for jobs in (exports(found), points(found)):
        done = sum(job.done for job in jobs)
        if done and not quiet:
            print(f"{done} of {len(jobs)} are done already")
        for outcome in run(jobs, on, workers):
            failed += outcome.error is not None
            if outcome.error is not None:
                print(f"pocketdraft: {outcome.job.name} failed: {outcome.error}", file=sys.stderr)
            elif not quiet:
                print(f"{outcome.job.name}: done", flush=True)
    if not quiet:
        print(f"pocketdraft report {found.out / 'points'}/*.json")
    if failed:
        raise typer.Exit(1)
