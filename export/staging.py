"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import MANIFEST_NAME


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Gives a hidden folder beside `out` to fill; renames it to `out` on success, removes it on failure.

    An older bundle at `out` is replaced; anything else there is refused. A killed run leaves the hidden
    folder, which the next export to the same place removes. Raises PocketdraftError, also for a full disk.
    """
    if out.exists() and not (out / MANIFEST_NAME).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise PocketdraftError(f"{out} exists and is no bundle; give another --out or remove it.")
    work = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        work.mkdir()
        yield work
        for path in work.rglob("*"):
            _sync(path)
        _swap(work, out)
    except OSError as error:
        raise PocketdraftError(
            f"Cannot write {out}: {error.strerror or error}; free space or give another --out."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _swap(work: Path, out: Path) -> None:
    """Rename cannot replace a folder that holds files: the old bundle steps aside for the moment between."""
    old = work.with_name(f".{out.name}.replaced-{os.getpid()}")
    if out.exists():
        out.rename(old)
    work.rename(out)
    _sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(out: Path) -> None:
    for path in out.parent.glob(f".{out.name}.partial-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
