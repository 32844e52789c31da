"""What `pocketdraft adapt` checks before torch is loaded, and what it prints. The work is in `export/adapt.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from . import terminal
from .errors import PocketdraftError
from .prompts import read_prompts


def run(
    target: Path | None,
    drafter: Path | None,
    prompts: Path,
    out: Path,
    lora: Sequence[Path],
    minutes: float,
    steps: int | None,
    context: int,
    device: Literal["cpu", "cuda"],
    quiet: bool,
) -> dict[str, Any]:
    """The record of the adaptation and where the drafter lies. Ctrl-C ends it with status 130 and leaves nothing."""
    if not minutes > 0:
        raise PocketdraftError(f"--minutes is {minutes:g}; give a positive number.")
    read_prompts(prompts)
    try:
        with terminal.progress(quiet) as advance:
            advance("Loading torch", 0, 1)
            from pocketdraft.export import adapt
            from pocketdraft.export.tiny import DRAFTER_DIR, TARGET_DIR

            task = adapt.Task(
                target=target or TARGET_DIR,
                drafter=drafter or DRAFTER_DIR,
                prompts=prompts,
                out=out,
                lora=tuple(lora),
                minutes=minutes,
                steps=steps,
                context=context,
                device=device,
            )
            return {"out": str(out), **asdict(adapt.adapt(task, advance))}
    except ModuleNotFoundError as error:
        mend = "pip install 'pocketdraft[export]'"
        raise PocketdraftError(f"adapt needs {error.name}, which is not installed: {mend}.") from error


def show(found: dict[str, Any]) -> None:
    before, after = found["before"], found["after"]
    title = f"{found['held_out']} held-out prompts, {found['drafts']} drafts a round"
    table = Table("", "before", "after", title=title, title_justify="left")
    table.add_row("accepted per round", f"{before['per_round']:.2f}", f"{after['per_round']:.2f}")
    for index, shares in enumerate(zip(before["by_position"], after["by_position"], strict=False), 1):
        table.add_row(f"draft {index} accepted", *(f"{share:.0%}" for share in shares))
    Console().print(table)
    work = f"{found['steps']} steps on {found['texts']} texts in {found['seconds']:.0f} s"
    if found["kept_step"]:
        print(f"{found['out']}: {work}; the weights of step {found['kept_step']} accept most.")
    else:
        print(f"{found['out']}: {work}; none accepted more than the old weights, which it holds as they were.")
