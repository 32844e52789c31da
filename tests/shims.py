"""Builds the native halves of android_demo/engines for a JVM on Linux, linked with the runtimes that pip installed.

Android's are built of the same sources by android_demo/tools/native.py.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from android_demo.tools.native import jni_headers

CPP = Path(__file__).parents[1] / "android_demo/engines/src/main/cpp"
C = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
CPP17 = ["-std=c++17", "-w", "-DC10_USING_CUSTOM_GENERATED_MACROS"]
EXECUTORCH = ("executorch", "executorch_kernels_optimized", "executorch_kernels_quantized")
EXECUTORCH += ("executorch_backend_xnnpack", "executorch_threadpool")


def build(folder: Path, packages: Sequence[Path], compilers: str = "") -> Path:
    """Puts libpocketdraft_RUNTIME.so into `folder` and gives it back. `packages` are the folders to find litert_lm,
    onnxruntime and executorch in; `compilers` goes before the names gcc and g++.
    """
    folder.mkdir(parents=True, exist_ok=True)
    litert_lm, onnxruntime, executorch = (
        next(parent / name for parent in packages if (parent / name).is_dir())
        for name in ("litert_lm", "onnxruntime", "executorch")
    )
    onnx = next(onnxruntime.glob("capi/libonnxruntime.so.*"))
    headers = executorch / "include"
    include = [f"-I{headers}", f"-I{headers}/executorch/runtime/core/portable_type/c10"]
    headers_of_jni = [f"-I{folder}" for folder in jni_headers()]
    kernels = ["-Wl,--no-as-needed", *(f"-l{name}" for name in EXECUTORCH)]

    def link(name: str, compiler: str, sources: list[str], flags: list[str], libraries: list[str], found: Path) -> None:
        target = folder / f"libpocketdraft_{name}.so"
        command = [compilers + compiler, "-O2", "-fPIC", "-shared", *flags, *headers_of_jni, "-o", str(target)]
        command += [*(str(CPP / source) for source in sources), f"-L{found}", *libraries, f"-Wl,-rpath,{found}"]
        subprocess.run(command, check=True)

    link("litert", "gcc", ["litert_jni.c", "litert_lm_jni.c"], C, ["-llitert-lm"], litert_lm)
    # The package's file is not called what the loader will ask for.
    (folder / "libonnxruntime.so.1").unlink(missing_ok=True)
    (folder / "libonnxruntime.so.1").symlink_to(onnx)
    link("onnx", "gcc", ["onnx_jni.c"], C, ["-l:libonnxruntime.so.1"], folder)
    link("executorch", "g++", ["executorch_jni.cpp"], [*CPP17, *include], kernels, executorch / "lib")
    return folder
