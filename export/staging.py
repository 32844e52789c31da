"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import MANIFEST_NAME


@dataclass(frozen=True)
class Kind:
    """What a folder is called, and the file that shows that it is one of ours."""

    name: str
    mark: str


BUNDLE = Kind("bundle", MANIFEST_NAME)
CALIBRATED = Kind("calibrated target", "calibration.json")
ADAPTED = Kind("drafter made by `pocketdraft adapt`", "adapt.json")


@contextlib.contextmanager
def staged(out: Path, only: str | None = None, kind: Kind = BUNDLE) -> Iterator[Path]:
    """Gives a hidden folder beside `out` to fill; renames it to `out` on success, removes it on failure.

    With `only`, that file of the folder becomes `out`, and the rest is dropped.

    An older folder of the kind (or file, with `only`) at `out` is replaced; anything else there is refused. A
    killed run leaves hidden folders at most, which the next one to the same place clears away. Raises
    PocketdraftError, also for a full disk.
    """
    check_out(out, only is not None, kind)
    work = _work_folder(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(out)
        work.mkdir()
        yield work
        for path in work.rglob("*"):
            _sync(path)
        if only is None:
            _swap(work, out)
        else:
            (work / only).replace(out)
            _sync(out.parent)
    except OSError as error:
        raise PocketdraftError(
            f"Cannot write {out}: {error.strerror or error}; free space or give another --out."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _work_folder(out: Path) -> Path:
    return out.parent / f".{out.name}.partial-{os.getpid()}"


def require_space(folder: Path, size: int) -> None:
    """Asked beforehand, because the converter ends the process, without a word, when a write of its own fails.

    `size` is in bytes. Raises PocketdraftError.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise PocketdraftError(
            f"The export needs about {size / 1e6:.0f} MB in {folder.parent}, {free / 1e6:.0f} MB are free there; "
            "free space or give another --out."
        )


def check_out(out: Path, single: bool, kind: Kind = BUNDLE) -> None:
    """Refuses a place that cannot hold a folder (`single`: a file), or holds what is not ours to replace."""
    if not out.exists():
        parent = next(folder for folder in out.absolute().parents if folder.exists())
        if not parent.is_dir():
            raise PocketdraftError(f"Cannot write {out}: {parent} is no folder; give another --out.")
        return
    ours = out.is_file() if single else (out / kind.mark).is_file() or (out.is_dir() and not any(out.iterdir()))
    if not ours:
        raise PocketdraftError(f"{out} exists and is no {kind.name}; give another --out or remove it.")


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


def clear_abandoned(out: Path) -> None:
    """Removes what killed runs left, and puts back an old bundle that one of them had moved aside."""
    for path in out.parent.glob(f".{out.name}.*-*"):
        kind, _, pid = path.name.removeprefix(f".{out.name}.").rpartition("-")
        if kind in ("partial", "replaced") and pid.isdigit() and not alive(int(pid)):
            if kind == "replaced" and not out.exists():
                path.rename(out)
            else:
                shutil.rmtree(path, ignore_errors=True)


def alive(pid: int) -> bool:
    """Whether a process of this number runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
