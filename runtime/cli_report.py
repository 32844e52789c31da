"""The commands that put figures together: `report`, `import` and `sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .profile import Profile, reported
from .results import Imports, Results, read_results


def report(
    results: Annotated[list[Path], typer.Argument(help="What `bench --out`, `profile` and `import` wrote.")],
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
    profiles = [one for one in found if isinstance(one, Profile)] + (reported() if public else [])
    page = make([r for r in found if isinstance(r, Results)], [r for r in found if isinstance(r, Imports)], profiles)
    for path in page.write(out):
        print(path)
