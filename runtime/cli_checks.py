"""What `validate` and `bench` hold bundles against, where torch and the checkpoints are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .manifest import Manifest
from .validate import Rungs


def rungs(
    manifest: Manifest,
    target: Path | None = None,
    drafters: Sequence[Path] = (),
    lora: Sequence[Path] = (),
    drafter_lora: Sequence[Path] = (),
) -> Rungs | None:
    """The torch rungs of the ladder, or None where torch or the checkpoints are not at hand."""
    try:
        from pocketdraft.export import rungs
    except ModuleNotFoundError:
        return None
    folders = rungs.find_checkpoints(manifest, target, drafters, lora, drafter_lora)
    return rungs.rungs(manifest, *folders, lora, drafter_lora) if folders else None
