"""As much of an ELF library as the build asks of it: the alignment of its segments and its dynamic symbols."""

from __future__ import annotations

import struct
from dataclasses import dataclass

LOAD, DYNAMIC, NOTE = 1, 2, 4
NEEDED, STRINGS, SONAME = 1, 5, 14
DYNSYM_SECTION = 11


@dataclass(frozen=True)
class Library:
    alignments: list[int]
    needed: list[str]
    soname: str | None
    defined: set[str]
    undefined: set[str]
    # The oldest Android that it was built for, where it says so.
    android: int | None = None


def read(data: bytes) -> Library:
    """A 64-bit little-endian library, as all of Android's 64-bit ABIs have."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("it is no 64-bit little-endian ELF library")
    program, sections = struct.unpack_from("<QQ", data, 32)
    size, count, section_size, section_count = struct.unpack_from("<HHHH", data, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", data, program + at * size) for at in range(count)]
    alignments = [segment[7] for segment in segments if segment[0] == LOAD]

    def offset(address: int) -> int:
        for kind, _, start, virtual, _, length, _, _ in segments:
            if kind == LOAD and virtual <= address < virtual + length:
                return int(start + address - virtual)
        raise ValueError(f"no segment holds address {address:#x}")

    dynamic: list[tuple[int, int]] = []
    for kind, _, start, _, _, length, _, _ in segments:
        if kind == DYNAMIC:
            dynamic = [struct.unpack_from("<QQ", data, at) for at in range(start, start + length, 16)]
    entries = dict(dynamic)
    strings = offset(entries[STRINGS])

    def text(at: int) -> str:
        return data[strings + at : data.index(b"\0", strings + at)].decode()

    defined: set[str] = set()
    undefined: set[str] = set()
    for at in range(section_count):
        header = struct.unpack_from("<IIQQQQIIQQ", data, sections + at * section_size)
        if header[1] != DYNSYM_SECTION:
            continue
        for symbol in range(header[4] + header[9], header[4] + header[5], header[9]):
            name, info, _, section = struct.unpack_from("<IBBH", data, symbol)
            weak = info >> 4 == 2
            if section:
                defined.add(text(name))
            elif not weak:
                undefined.add(text(name))
    return Library(
        alignments,
        [text(value) for tag, value in dynamic if tag == NEEDED],
        text(entries[SONAME]) if SONAME in entries else None,
        defined,
        undefined,
        android_version(data, [segment for segment in segments if segment[0] == NOTE]),
    )


def android_version(data: bytes, notes: list[tuple[int, ...]]) -> int | None:
    """The NDK leaves a note named "Android", of type 1, that starts with the API level."""
    for _, _, start, _, _, length, _, _ in notes:
        at = data.find(struct.pack("<I", 1) + b"Android\0", start, start + length)
        if at >= 0:
            return int.from_bytes(data[at + 12 : at + 16], "little")
    return None
