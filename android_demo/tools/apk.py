"""Packs an APK: resources, code and libraries in the order given, each stored entry where Android can map it."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

# The extra field in which zipalign, and apksigner after it, keep an entry's alignment.
ALIGNMENT_FIELD = 0xD935
WORD = 4
# The same entries make the same bytes.
DATE = (1981, 1, 1, 1, 1, 2)


@dataclass(frozen=True)
class Entry:
    name: str
    data: bytes

    @property
    def stored(self) -> bool:
        """Libraries and the resource table are mapped from the APK as they lie there."""
        return self.name.endswith(".so") or self.name == "resources.arsc"


def pack(entries: list[Entry], apk: Path, page_size: int) -> None:
    with apk.open("wb") as stream, zipfile.ZipFile(stream, "w") as out:
        for entry in entries:
            info = zipfile.ZipInfo(entry.name, DATE)
            info.external_attr = 0o644 << 16
            if entry.stored:
                info.extra = padding(stream.tell(), info, alignment(entry.name, page_size))
            else:
                info.compress_type = zipfile.ZIP_DEFLATED
            out.writestr(info, entry.data)


def alignment(name: str, page_size: int) -> int:
    return page_size if name.endswith(".so") else WORD


def padding(at: int, info: zipfile.ZipInfo, aligned: int) -> bytes:
    """An extra field as long as it takes for the data of an entry, whose header starts at `at`, to be aligned."""
    header = 30 + len(info.filename.encode()) + 6
    fill = -(at + header) % aligned
    return struct.pack("<HHH", ALIGNMENT_FIELD, 2 + fill, aligned) + bytes(fill)


def data_offset(raw: bytes, info: zipfile.ZipInfo) -> int:
    name, extra = struct.unpack_from("<HH", raw, info.header_offset + 26)
    return int(info.header_offset + 30 + name + extra)
