"""Bundles that outlive a test run: ExecuTorch's lowering alone takes minutes, and several runs want the same."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import open_bundle

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "bundles"
# Whatever a bundle may depend on.
SOURCES = ("export", "quantize", "constraints.txt", "runtime/manifest.py", "runtime/graphs.py")
SOURCES += ("runtime/drafter_specs.py", "runtime/text.py", "runtime/chat_template.py", "runtime/chat_turns.py")
SOURCES += ("tests/conftest.py", "tests/small_sizes.py", "tests/qwen3_5.py")


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The bundle that `make` writes to the folder it is given, or wrote for these sources before. Not to be changed."""
    place = FOLDER / _digest() / name
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _whole(place):
            shutil.rmtree(place, ignore_errors=True)
            make(place)
    return place


def clear_old() -> None:
    """Those of other sources, a day after they were made: another checkout's run may still use them."""
    for folder in FOLDER.glob("*"):
        if folder.name != _digest() and time.time() - folder.stat().st_mtime > 86400:
            shutil.rmtree(folder, ignore_errors=True)


def _whole(place: Path) -> bool:
    try:
        open_bundle(place)
    except PocketdraftError:
        return False
    return True


@cache
def _digest() -> str:
    total = hashlib.sha256()
    for source in SOURCES:
        path = ROOT / source
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                total.update(f"{file.relative_to(ROOT)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]
