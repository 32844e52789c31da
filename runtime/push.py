"""Copies a bundle to a phone over adb, in pieces: an interrupted push goes on where it stopped.

A file grows on the phone as FILE.partial, piece by piece, and gets its name once its sha256 is the manifest's;
bundle.json comes last, so that a half-pushed bundle never opens. What lies there already is not sent again.
"""

from __future__ import annotations

import hashlib
import shlex
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .adb import Phone
from .errors import PocketdraftError
from .manifest import MANIFEST_NAME, open_bundle, sha256

PLACE = "/data/local/tmp/pocketdraft"
PIECE_BYTES = 128 << 20
SPARE_BYTES = 64 << 20
# (what is being done, bytes so far, bytes in all)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pushed:
    """`sent` bytes of `size`; the rest was there."""

    place: str
    size: int
    sent: int


def push(bundle: Path, serial: str | None, progress: Progress) -> Pushed:
    """To PLACE/NAME on the phone. Raises PocketdraftError; what has arrived by then stays for the next push."""
    manifest = open_bundle(bundle)
    phone, place = Phone(serial), f"{PLACE}/{bundle.resolve().name}"
    digests = {name: entry.sha256 for name, entry in manifest.files.items()}
    digests[MANIFEST_NAME] = sha256(bundle / MANIFEST_NAME)
    phone.shell(f"mkdir -p {shlex.quote(place)}")
    missing = [name for name, digest in digests.items() if phone.sha256(f"{place}/{name}") != digest]
    sizes = {name: (bundle / name).stat().st_size for name in digests}
    if missing:
        arrived = sum(phone.size(f"{place}/{name}.partial") for name in missing)
        _require_space(phone, sum(sizes[name] for name in missing) - arrived + PIECE_BYTES + SPARE_BYTES)
        phone.shell(f"rm -f {shlex.quote(f'{place}/{MANIFEST_NAME}')}")  # what it says is not true until the end
        missing = [name for name in missing if name != MANIFEST_NAME] + [MANIFEST_NAME]
    total, sent = sum(sizes[name] for name in missing), 0
    done = 0
    for name in missing:
        target = f"{place}/{name}"
        for arrived, fresh in _send(phone, bundle / name, target, digests[name]):
            progress(f"Pushing {name}", done + arrived, total)
            sent += fresh
        done += sizes[name]
    return Pushed(place, sum(sizes.values()), sent)


def _send(phone: Phone, source: Path, target: str, digest: str) -> Iterator[tuple[int, int]]:
    """Appends to `target.partial` what it lacks. Yields, a piece at a time, the bytes there and those just sent."""
    partial, piece = shlex.quote(f"{target}.partial"), shlex.quote(f"{target}.piece")
    kept = _resumable(phone, source, f"{target}.partial")
    phone.shell(f"touch {partial} && truncate -s {kept} {partial}")
    yield kept, 0
    with source.open("rb") as file, tempfile.TemporaryDirectory(prefix="pocketdraft-") as scratch:
        file.seek(kept)
        while data := file.read(PIECE_BYTES):
            local = Path(scratch) / "piece"
            local.write_bytes(data)
            phone.push(local, f"{target}.piece")
            if phone.sha256(f"{target}.piece") != hashlib.sha256(data).hexdigest():
                raise PocketdraftError(f"A piece of {source} arrived damaged, at byte {kept}; push again to go on.")
            phone.shell(f"cat {piece} >> {partial} && rm {piece}")
            kept += len(data)
            yield kept, len(data)
    if phone.sha256(f"{target}.partial") != digest:
        phone.shell(f"rm -f {partial}")
        raise PocketdraftError(f"{target} is not what {source} is (sha256 differs); push again.")
    phone.shell(f"mv {partial} {shlex.quote(target)}")


def _resumable(phone: Phone, source: Path, partial: str) -> int:
    """How many bytes of `partial`, in whole pieces, are the source's beginning."""
    whole = min(phone.size(partial), source.stat().st_size) // PIECE_BYTES * PIECE_BYTES
    if not whole:
        return 0
    digest = hashlib.sha256()
    with source.open("rb") as file:
        for _ in range(whole // PIECE_BYTES):
            digest.update(file.read(PIECE_BYTES))
    there = phone.shell(f"head -c {whole} {shlex.quote(partial)} | sha256sum").split()
    return whole if there[:1] == [digest.hexdigest()] else 0


def _require_space(phone: Phone, needed: int) -> None:
    lines = phone.shell(f"df -k {PLACE}").splitlines()
    words = lines[-1].split() if lines else []
    if len(words) < 4 or not words[3].isdecimal():
        raise PocketdraftError(f"The phone does not tell the space left in {PLACE} (df said {lines[-1:]}).")
    free = int(words[3]) * 1024
    if free < needed:
        raise PocketdraftError(
            f"The push needs {needed / 1e6:.0f} MB on the phone, {free / 1e6:.0f} MB are free; make room there."
        )
