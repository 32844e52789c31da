"""Steps of the build that are left out when nothing they read has changed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from .description import BUILD, BuildError

TOOLS = Path(__file__).parent


def command(work: Callable[[], None]) -> None:
    """Runs a command of the build: one at a time in this checkout, and what the user can mend as a plain sentence."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            work()
        except BuildError as error:
            print(error, file=sys.stderr)
            sys.exit(2)


def step(output: Path, inputs: Iterable[Path | str], make: Callable[[Path], None]) -> Path:
    """Has `make` write the file or folder `output`, unless the inputs are those it was last made of.

    Inputs are files, folders and words; the build's own scripts count too. The output appears whole or not at all.
    """
    stamp = output.with_name(f".{output.name}.inputs")
    wanted = digest([*sorted(TOOLS.rglob("*.py")), *inputs])
    if output.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return output
    stamp.unlink(missing_ok=True)
    partial = output.with_name(f"partial-{output.name}")
    for stale in (partial, output):
        remove(stale)
    output.parent.mkdir(parents=True, exist_ok=True)
    print(f"making {output.name}", flush=True)
    make(partial)
    os.replace(partial, output)
    stamp.write_text(wanted)
    return output


def digest(inputs: Iterable[Path | str]) -> str:
    total = hashlib.sha256()
    for item in inputs:
        files = [item] if isinstance(item, str) or item.is_file() else sorted(item.rglob("*"))
        for file in files:
            total.update(f"{file}\0".encode())
            if isinstance(file, Path) and file.is_file():
                with file.open("rb") as stream:
                    total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def run(*command: str | Path, quiet: bool = False) -> str:
    """Runs a tool; what it says is shown when it fails, and its output given back."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError as error:
        package = PACKAGES.get(words[0], words[0])
        raise BuildError(f"{words[0]} is not on this machine: apt-get install {package} first.") from error
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        raise BuildError(f"{shlex.join(words)[:400]} failed with exit status {done.returncode}:\n{said}")
    if not quiet and done.stderr.strip():
        print(done.stderr.strip())
    return done.stdout


# Debian's packages of the tools that the machine must have.
PACKAGES = {
    "aapt2": "aapt",
    "apksigner": "apksigner",
    "clang": "clang lld",
    "clang++": "clang lld",
    "java": "openjdk-17-jdk-headless",
    "javac": "openjdk-17-jdk-headless",
    "keytool": "openjdk-17-jdk-headless",
}
