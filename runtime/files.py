"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import PocketdraftError


def require_folder(out: Path) -> None:
    """Asked before long work. Raises PocketdraftError where there is no folder to write `out` to."""
    if not out.parent.is_dir():
        raise PocketdraftError(f"--out is {out}, and {out.parent} is no folder; make it, or give another place.")


def write_whole(path: Path, text: str) -> None:
    """Writes UTF-8 beside `path` and renames it: whoever reads sees the old file or the new one. Raises OSError."""
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        mode = path.stat().st_mode if path.exists() else 0o666 & ~_umask()
        os.chmod(partial, mode & 0o777)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
