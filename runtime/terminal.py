"""What commands write where: results to standard output, progress to standard error, native chatter nowhere."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Advance = Callable[[str, int, int], None]


def silence_native_code() -> None:
    """For the rest of the process, C++ libraries write to nowhere; `sys.stderr` keeps the real standard error.

    They log at start, on first use and at exit, past Python and without a switch. POCKETDRAFT_VERBOSE=1 lets them.
    """
    if os.environ.get("POCKETDRAFT_VERBOSE"):
        return
    warnings.simplefilter("ignore")
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    _point(2, os.devnull)


def table_console() -> Console:
    """For tables: as wide as the terminal, and 150 columns where there is none."""
    return Console(width=None if Console().is_terminal else 150)


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Advance]:
    """Gives `advance(what, done, total)`. Meanwhile whatever libraries print to standard output is dropped.

    Ctrl-C ends the command with status 130.
    """
    console = Console(file=sys.stderr, quiet=quiet)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar, _silenced():
        task = bar.add_task("", total=None)
        stage = ""

        def advance(what: str, done: int, total: int) -> None:
            nonlocal stage
            if what != stage and not console.is_terminal:  # a log gets a line for each stage
                console.print(f"{what} ...")
            stage = what
            bar.update(task, description=what, completed=done, total=total)

        try:
            yield advance
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    if os.environ.get("POCKETDRAFT_VERBOSE"):
        yield
        return
    sys.stdout.flush()
    saved = os.dup(1)
    _point(1, os.devnull)
    try:
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def drop_output() -> None:
    """What is still to be written cannot be; the interpreter shall not try again at exit."""
    _point(1, os.devnull)


def _point(descriptor: int, path: str) -> None:
    target = os.open(path, os.O_WRONLY)
    os.dup2(target, descriptor)
    os.close(target)
