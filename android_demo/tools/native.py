"""The native libraries of the APK: the runtimes' as they came, and our shims built by clang for each ABI."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

from . import elf
from .description import BUILD, DEMO, BuildError, Description, Runtime, Shim, load
from .fetch import fetch_all
from .jvm import UNPACKED
from .steps import TOOLS, command, run, step

TRIPLES = {"arm64-v8a": "aarch64-linux-android", "x86_64": "x86_64-linux-android"}


def libraries(description: Description, abi: str) -> dict[str, list[Path]]:
    """The libraries to pack for an ABI, by the runtime or shim they belong to."""
    if abi not in TRIPLES:
        raise BuildError(f"app.abis in runtimes.toml lists {abi}, but shims are built for {', '.join(TRIPLES)} only.")
    packed = {runtime.name: runtime_libraries(runtime, abi) for runtime in description.packed_runtimes()}
    for shim in description.shims.values():
        packed[shim.name] = [built_shim(description, shim, abi)]
    packed = {name: files for name, files in packed.items() if files}
    check_symbols({file: elf.read(file.read_bytes()) for files in packed.values() for file in files}, description, abi)
    return packed


def runtime_libraries(runtime: Runtime, abi: str) -> list[Path]:
    """A runtime's libraries under the names they are loaded by. Gradle reads `runtimes`; Maven has the rest."""
    folder = BUILD / ("lib" if runtime.maven else "runtimes") / abi
    placed = []
    for template in runtime.libraries:
        source = UNPACKED / template.format(abi=abi)
        if not source.is_file():
            raise BuildError(f"runtime {runtime.name} has no {source.name} for {abi}: app.abis lists it.")
        target = folder / runtime.sonames.get(source.name, source.name)
        placed.append(step(target, [source], functools.partial(copy_file, source)))
    return placed


def copy_file(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def built_shim(description: Description, shim: Shim, abi: str) -> Path:
    app = description.app
    cpp = DEMO / str(description.modules[shim.module].cpp)
    sources = [cpp / source for source in shim.sources]
    cxx = any(source.suffix == ".cpp" for source in sources)
    runtime = description.runtimes[shim.runtime] if shim.runtime else None
    linked = runtime_libraries(runtime, abi) if runtime else []
    include = [UNPACKED / folder for folder in runtime.include] if runtime else []
    flags = ["-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-fvisibility=hidden", "-fno-stack-protector"]
    flags += [f"--target={TRIPLES[abi]}{app.min_sdk}", "-fuse-ld=lld", "-nostdlib", "-nostdlibinc"]
    flags += [f"-Wl,-soname,lib{shim.name}.so", f"-Wl,-z,max-page-size={app.page_size}"]
    # Android's C library is not here to link with: check_symbols looks at what it is asked for.
    flags += ["-Wl,--unresolved-symbols=ignore-all", "-Wl,--gc-sections"]
    flags += cxx_flags(app.cpp_standard) if cxx else ["-ffreestanding"]
    # Android's C headers come only with the NDK; musl's declare the same functions.
    include += [*(UNPACKED / f"libc-{abi}/usr/include").iterdir(), *jni_headers()]
    flags += [f"-isystem{folder}" for folder in include]
    found = [word for library in linked for word in (f"-L{library.parent}", f"-l:{library.name}")]

    def make(library: Path) -> None:
        run("clang++" if cxx else "clang", *flags, *sources, *found, "-o", library)

    return step(BUILD / "lib" / abi / f"lib{shim.name}.so", [cpp, *linked, *flags], make)


def cxx_flags(standard: int) -> list[str]:
    """Debian's libc++ under the name that the NDK gives it; no exceptions, as ExecuTorch itself is built."""
    return [
        *(f"-std=c++{standard}", "-nostdinc++", "-fno-exceptions"),
        *("-D_LIBCPP_ABI_NAMESPACE=__ndk1", "-D_LIBCPP_HAS_MUSL_LIBC"),
        *("-include", str(TOOLS / "include/before_libcxx.h")),
        f"-isystem{UNPACKED / 'libcxx/usr/lib/llvm-14/include/c++/v1'}",
    ]


def jni_headers() -> list[Path]:
    compiler = shutil.which("javac")
    if compiler is None:
        raise BuildError("javac is not on this machine: install a JDK, 17 or newer.")
    include = Path(compiler).resolve().parents[1] / "include"
    return [include, include / "linux"]


def check_symbols(libraries: dict[Path, elf.Library], description: Description, abi: str) -> None:
    """Each symbol that a shim needs is in a library it is packed with, or one that the runtimes ask of Android too."""
    shims = {f"lib{name}.so" for name in description.shims}
    present = set().union(*(library.defined for library in libraries.values()))
    asked = set().union(*(library.undefined for file, library in libraries.items() if file.name not in shims))
    for file, library in libraries.items():
        if file.name in shims and (absent := library.undefined - present - asked):
            raise BuildError(
                f"{file.name} for {abi} asks for {', '.join(sorted(absent)[:5])}, which no packed library has and no "
                "runtime takes from Android: write the shim without."
            )
        packed = {other.name for other in libraries}
        if absent := {name for name in library.needed if name not in packed and name not in SYSTEM}:
            raise BuildError(
                f"{file.name} for {abi} needs {', '.join(sorted(absent))}, neither packed nor a library of Android: "
                "add it to runtimes.toml."
            )


# Libraries that every Android lets an app load.
SYSTEM = {"libc.so", "libm.so", "libdl.so", "liblog.so", "libandroid.so", "libz.so", "libjnigraphics.so"}
SYSTEM |= {"libEGL.so", "libGLESv2.so", "libGLESv3.so"}


def main() -> None:
    """`make android-runtimes`: what Gradle needs and no Maven repository has."""
    description = load()
    fetch_all(description)
    for abi in description.app.abis:
        for runtime in description.packed_runtimes():
            if not runtime.maven:
                runtime_libraries(runtime, abi)


if __name__ == "__main__":
    command(main)
