"""A phone behind adb."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from .errors import PocketdraftError


class Phone:
    """adb's shell and push on one device. Every failure is a PocketdraftError."""

    def __init__(self, serial: str | None) -> None:
        adb = shutil.which("adb")
        if adb is None:
            raise PocketdraftError("adb is not installed; install Android's platform-tools and put them on PATH.")
        self._adb = [adb]
        self._adb += ["-s", self._chosen(serial)]

    def shell(self, command: str) -> str:
        return self._run("shell", command)

    def size(self, place: str) -> int:
        """Of a file in bytes, 0 if there is none."""
        said = self.shell(f"stat -c %s {shlex.quote(place)} 2>/dev/null || echo 0").strip()
        return int(said) if said.isdecimal() else 0

    def sha256(self, place: str) -> str:
        """Of a file, empty if there is none."""
        return next(iter(self.shell(f"sha256sum {shlex.quote(place)} 2>/dev/null || true").split()), "")

    def read(self, place: str) -> str:
        """A file's text, empty if there is none."""
        return self.shell(f"cat {shlex.quote(place)} 2>/dev/null || true")

    def push(self, source: Path, place: str) -> None:
        self._run("push", str(source), place)

    def _chosen(self, serial: str | None) -> str:
        lines = self._run("devices").splitlines()[1:]
        states = dict(line.split("\t")[:2] for line in lines if "\t" in line)
        ready = [name for name, state in states.items() if state == "device"]
        if serial is not None and serial not in ready:
            state = states.get(serial, "not connected")
            raise PocketdraftError(
                f"The phone {serial} is {state}; connect it, allow debugging on it, or give one of {ready or 'none'}."
            )
        if serial is None and len(ready) != 1:
            told = ", ".join(f"{name} ({state})" for name, state in states.items()) or "none"
            raise PocketdraftError(
                f"adb sees {len(ready)} phones that are ready, one is needed ({told}); connect one and allow "
                "debugging on it, or choose with --serial."
            )
        return serial or ready[0]

    def _run(self, *words: str) -> str:
        done = subprocess.run([*self._adb, *words], capture_output=True, text=True, errors="replace")
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
            raise PocketdraftError(
                f"adb {words[0]} failed ({said[-1]}); reconnect the phone and run the command again."
            )
        return done.stdout
