"""What must be true of a finished APK: its signature, the alignment of what is mapped from it, its permissions."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from . import elf
from .apk import alignment, data_offset
from .description import App, BuildError
from .steps import run


def check_apk(apk: Path, app: App) -> None:
    check_signature(apk, app.min_sdk)
    check_libraries(apk, app.min_sdk)
    check_alignment(apk, app.page_size)
    check_identity(run("aapt2", "dump", "badging", apk), app)
    check_permissions(run("aapt2", "dump", "permissions", apk), app.permissions)


def check_signature(apk: Path, min_sdk: int) -> None:
    said = run("apksigner", "verify", "--verbose", "--min-sdk-version", str(min_sdk), apk, quiet=True)
    for scheme in ("v2", "v3"):
        if not re.search(rf"Verified using {scheme} scheme .*: true", said):
            raise BuildError(f"{apk.name} is not signed by scheme {scheme}: sign it again with apksigner.")


def check_alignment(apk: Path, page_size: int) -> None:
    """Stored entries start at their alignment, libraries are stored, and so are their segments aligned."""
    raw = apk.read_bytes()
    with zipfile.ZipFile(apk) as packed:
        for info in packed.infolist():
            library = info.filename.endswith(".so")
            if library and info.compress_type != zipfile.ZIP_STORED:
                raise BuildError(f"{info.filename} is compressed in {apk.name}: store it, Android maps it as it lies.")
            aligned = alignment(info.filename, page_size)
            start = data_offset(raw, info)
            if info.compress_type == zipfile.ZIP_STORED and start % aligned:
                raise BuildError(
                    f"{info.filename} starts at byte {start} of {apk.name}, which is no multiple of {aligned}: "
                    "pack it with tools/apk.py."
                )
            if library:
                check_segments(info.filename, raw[start : start + info.file_size], page_size)


def check_libraries(apk: Path, min_sdk: int) -> None:
    """No library was built for a newer Android than the app installs on."""
    with zipfile.ZipFile(apk) as packed:
        for name in packed.namelist():
            android = elf.read(packed.read(name)).android if name.endswith(".so") else None
            if android and android > min_sdk:
                raise BuildError(
                    f"{name} was built for API level {android}, but app.min_sdk in runtimes.toml is {min_sdk}: raise "
                    "that, or take an older build of the runtime."
                )


def check_segments(name: str, library: bytes, page_size: int) -> None:
    for aligned in elf.read(library).alignments:
        if aligned % page_size:
            raise BuildError(
                f"{name} has a segment aligned to {aligned} bytes, but app.page_size is {page_size}: link it with "
                f"-Wl,-z,max-page-size={page_size}, or take a build of the runtime that was."
            )


def check_identity(badging: str, app: App) -> None:
    wanted = {
        "package: name": app.id,
        "versionCode": str(app.version_code),
        "versionName": app.version_name,
        "sdkVersion": str(app.min_sdk),
        "targetSdkVersion": str(app.target_sdk),
    }
    for key, value in wanted.items():
        found = re.search(rf"^{key}[=:]'([^']*)'|\b{key}='([^']*)'", badging, re.MULTILINE)
        given = (found[1] or found[2]) if found else "nothing"
        if given != value:
            raise BuildError(f"the APK's {key} is {given}, but runtimes.toml says {value}: build it again.")


def check_permissions(dumped: str, allowed: list[str]) -> None:
    asked = re.findall(r"^(?:uses-)?permission[^:]*: name='([^']*)'", dumped, re.MULTILINE)
    if beyond := sorted(set(asked) - set(allowed)):
        raise BuildError(
            f"the APK asks for {', '.join(beyond)}, but app.permissions in runtimes.toml allows "
            f"{', '.join(allowed) or 'none'}: take it out of the manifest, or allow it there."
        )
