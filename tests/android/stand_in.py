"""Lets this machine run the APK's own x86_64 libraries, on a stand-in for Android's C library over glibc's.

It shows that they load, find each other's symbols, agree on the layout of C++ objects and compute what they should. It
shows nothing about Android itself: its linker, its C library, its JVM.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

from android_demo.tools import elf

HERE = Path(__file__).parent
# The versions that symbols of Android's libc.so, libm.so and libdl.so have.
VERSIONS = ("LIBC", "LIBC_N", "LIBC_O", "LIBC_P", "LIBC_Q", "LIBC_R")
VARIABLES = {"stdin", "stdout", "stderr", "environ", "__sF", "timezone", "tzname"}
JUMPS = {
    "x86_64": "    jmp *{slot}(%rip)",
    "aarch64": "    adrp x16, {slot}\n    ldr x16, [x16, :lo12:{slot}]\n    br x16",
}
PAGE = 16384
PACKED, PACKED_SIZE, RELOCATIONS, RELOCATIONS_SIZE = 0x60000011, 0x60000012, 7, 8
NOTE, READ = 4, 4
ROW = struct.Struct("<QQq")


def stand_in(folder: Path, machine: str) -> None:
    """Makes a folder of Android's libraries loadable with LD_LIBRARY_PATH: adds the libraries that they need."""
    files = list(folder.glob("*.so"))
    for file in files:
        file.write_bytes(unpacked(file.read_bytes()))
    libraries = [elf.read(file.read_bytes()) for file in files]
    defined = set().union(*(library.defined for library in libraries))
    functions = sorted(set().union(*(library.undefined for library in libraries)) - defined - VARIABLES)
    made = folder / "stand-in"
    made.mkdir()
    words = ",\n".join(f'    "{name}"' for name in functions)
    (made / "names.h").write_text(f"static const char *const names[] = {{\n{words}\n}};\n")
    (made / "jumps.s").write_text("\n".join(jump(at, name, machine) for at, name in enumerate(functions)) + "\n")
    older = [f"{version} {{ global: *; }};" if not at else f"{version} {{}};" for at, version in enumerate(VERSIONS)]
    (made / "versions.map").write_text("\n".join(older) + "\n")
    flags = ["clang", f"--target={machine}-linux-gnu", "-w", "-O1", "-fPIC", "-shared", "-fno-builtin", "-fuse-ld=lld"]
    versioned = [*flags, "-nostdlib", f"-Wl,--version-script={made / 'versions.map'}"]

    def build(command: list[str], name: str, *sources: Path) -> None:
        subprocess.run([*command, f"-Wl,-soname,{name}", *sources, "-o", folder / name], check=True)

    build(flags, "libbionic.so", HERE / "bionic.c")
    build([*versioned, f"-I{made}"], "libc.so", HERE / "libc.c", made / "jumps.s", folder / "libbionic.so")
    (made / "empty.c").write_text("int nothing;\n")
    needed = set().union(*(library.needed for library in libraries))
    for name in needed - {file.name for file in files} - {"libc.so"}:
        build(versioned, name, made / "empty.c")


def jump(at: int, name: str, machine: str) -> str:
    """A function that jumps through its slot, under each version that a library may ask for."""
    lines = [f".globl {name}", f".type {name}, @function", f"{name}:"]
    for version in VERSIONS[1:]:
        alias = f"{name}.{version}"
        lines += [f".globl {alias}", f".type {alias}, @function", f".symver {alias}, {name}@{version}", f"{alias}:"]
    return "\n".join([".text", *lines, JUMPS[machine].format(slot=f"slots + {8 * at}")])


def unpacked(library: bytes) -> bytes:
    """The library with relocations as any loader reads them, where it has them packed as only Android's does.

    They go behind the file's end, into a segment that takes the place of a note's.
    """
    data = bytearray(library)
    (program,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", data, program + at * size) for at in range(count)]
    loads = [segment for segment in segments if segment[0] == elf.LOAD]
    dynamic = next(segment for segment in segments if segment[0] == elf.DYNAMIC)
    entries = {struct.unpack_from("<Q", data, at)[0]: at for at in range(dynamic[2], dynamic[2] + dynamic[5], 16)}
    if PACKED not in entries:
        return library
    (address,) = struct.unpack_from("<Q", data, entries[PACKED] + 8)
    start = next(load[2] + address - load[3] for load in loads if load[3] <= address < load[3] + load[5])
    table = b"".join(relocations(library, start))
    data += bytes(-len(data) % PAGE)
    free = -(-max(load[3] + load[6] for load in loads) // PAGE) * PAGE
    note = max(at for at, segment in enumerate(segments) if segment[0] == NOTE)
    row = (elf.LOAD, READ, len(data), free, free, len(table), len(table), PAGE)
    struct.pack_into("<IIQQQQQQ", data, program + note * size, *row)
    struct.pack_into("<QQ", data, entries[PACKED], RELOCATIONS, free)
    struct.pack_into("<QQ", data, entries[PACKED_SIZE], RELOCATIONS_SIZE, len(table))
    return bytes(data) + table


def relocations(library: bytes, at: int) -> list[bytes]:
    """Android's packed form: "APS2", then signed LEB128 numbers, in groups that have some numbers in common."""
    assert library[at : at + 4] == b"APS2"
    at += 4

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = library[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value - (1 << shift) if byte & 64 else value

    rows: list[bytes] = []
    count, offset, addend = number(), number(), 0
    while len(rows) < count:
        length, flags = number(), number()
        same_info, same_step, same_addend, has_addend = (flags >> bit & 1 for bit in range(4))
        step = number() if same_step else 0
        info = number() if same_info else 0
        addend = addend + number() if has_addend and same_addend else addend * has_addend
        for _ in range(length):
            offset += step if same_step else number()
            info = info if same_info else number()
            addend += number() if has_addend and not same_addend else 0
            rows.append(ROW.pack(offset, info, addend))
    return rows
