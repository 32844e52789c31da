"""What exports have in common, kept between them: a folder of files named after what they were made from.

A file appears whole or not at all and never changes, so that any number of exports may share the folder and be
killed at any moment. What was not used for longest goes first when the folder grows beyond its bound.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import platformdirs

from pocketdraft.runtime.errors import PocketdraftError

from .staging import alive

FOLDER_VARIABLE, BOUND_VARIABLE = "POCKETDRAFT_CACHE", "POCKETDRAFT_CACHE_GB"
DEFAULT_BOUND_GB = 20.0
PARTIAL = ".partial-"


def key_of(*facts: object) -> str:
    """A file name for what was made from these facts; each must have a faithful `repr`."""
    return hashlib.sha256("\0".join(map(repr, facts)).encode()).hexdigest()


@dataclass(frozen=True)
class Cache:
    """`bound` is in bytes: what a finished export leaves behind, while one that runs may need more."""

    folder: Path
    bound: int

    @staticmethod
    def default() -> Cache:
        """In the user's cache folder, or where POCKETDRAFT_CACHE says; POCKETDRAFT_CACHE_GB bounds it, 20 if unset."""
        folder = os.environ.get(FOLDER_VARIABLE) or platformdirs.user_cache_dir("pocketdraft", appauthor=False)
        said = os.environ.get(BOUND_VARIABLE, str(DEFAULT_BOUND_GB))
        try:
            bound = float(said)
        except ValueError:
            bound = -1.0
        if not 0 <= bound < float("inf"):
            raise PocketdraftError(
                f"{BOUND_VARIABLE} is {said!r}; give a size in GB, such as 20, or 0 to keep nothing."
            )
        return Cache(Path(folder), int(bound * 1e9))

    def open(self, key: str, make: Callable[[Path], None]) -> BinaryIO:
        """The file of this key, open to read; `make` writes it to the path that it is given, if it is not there.

        Opened before others can see it, and so safe from a trim by another export at any moment. Raises
        PocketdraftError where the cache cannot be written.
        """
        path = self.folder / key[:2] / key
        with contextlib.suppress(OSError):  # absent, or another user's, which cannot be touched
            os.utime(path)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return path.open("rb")
        partial = path.with_name(f"{key}{PARTIAL}{os.getpid()}-{uuid.uuid4().hex[:8]}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            make(partial)
            file = partial.open("rb")
            partial.replace(path)
        except OSError as error:
            raise PocketdraftError(
                f"Cannot write the cache {self.folder}: {error.strerror or error}; "
                f"free space, or name another folder in {FOLDER_VARIABLE}."
            ) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
        return file

    def trim(self) -> None:
        """Removes what dead processes left half-written, then the least recently used, down to the bound."""
        files = []
        for path in self.folder.glob("??/*"):
            _, partial, owner = path.name.partition(PARTIAL)
            with contextlib.suppress(OSError):  # another export trims as well
                if not partial:
                    files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
                elif not alive(int(owner.partition("-")[0])):
                    path.unlink()
        size = sum(length for _, length, _ in files)
        for _, length, path in sorted(files):
            if size <= self.bound:
                break
            path.unlink(missing_ok=True)
            size -= length
