"""ExecuTorch's C++ runtime through ctypes, under the names of its Python binding.

The binding needs torch, whose arm64 wheel needs CUDA's libraries. With `install` the engine file of ExecuTorch runs
as it is, on the shared libraries of ExecuTorch's own arm64 wheel (see `executorch_native.cpp`).
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

# torch's numbers for what the graphs take and give.
CODES = {np.dtype(np.int32): 3, np.dtype(np.int64): 4, np.dtype(np.float32): 6, np.dtype(np.bool_): 11}
DTYPES = {code: dtype for dtype, code in CODES.items()}


class Tensor:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def numpy(self) -> np.ndarray:
        return self.array


class Program:
    def __init__(self, library: Any, path: Path) -> None:
        self._library = library
        self.handle = library.program_open(str(path).encode())

    def load_method(self, name: str) -> Method:
        _check(self._library.program_load(self.handle, name.encode()), f"loading {name}")
        return Method(self._library, self.handle, name)


class Method:
    def __init__(self, library: Any, handle: int, name: str) -> None:
        self._library, self._handle, self._name = library, handle, name

    def execute(self, tensors: list[Tensor]) -> list[Tensor]:
        arrays = [tensor.array for tensor in tensors]
        pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        codes = (ctypes.c_int8 * len(arrays))(*(CODES[array.dtype] for array in arrays))
        ranks = (ctypes.c_int32 * len(arrays))(*(array.ndim for array in arrays))
        sizes = [size for array in arrays for size in array.shape]
        shapes = (ctypes.c_int32 * len(sizes))(*sizes)
        name = self._name.encode()
        status = self._library.program_execute(self._handle, name, len(arrays), pointers, codes, ranks, shapes)
        _check(status, f"executing {self._name}")
        return [self._output(index) for index in range(self._library.program_outputs(self._handle))]

    def _output(self, index: int) -> Tensor:
        data, code, shape = ctypes.c_void_p(), ctypes.c_int8(), (ctypes.c_int32 * 8)()
        rank = self._library.program_output(
            self._handle, index, ctypes.byref(data), ctypes.byref(code), ctypes.byref(shape)
        )
        dtype, sizes = DTYPES[code.value], shape[:rank]
        raw = ctypes.string_at(data, int(np.prod(sizes)) * dtype.itemsize)
        return Tensor(np.frombuffer(raw, dtype).reshape(sizes))


def _check(status: int, what: str) -> None:
    if status:
        raise RuntimeError(f"ExecuTorch's error {status:#x} in {what}")


def install(library_path: Path) -> None:
    library = ctypes.CDLL(str(library_path))
    library.program_open.restype = ctypes.c_void_p
    for function in (library.program_load, library.program_execute, library.program_outputs, library.program_output):
        function.argtypes = [ctypes.c_void_p]
    runtime = SimpleNamespace(load_program=lambda path: Program(library, path))
    bindings = SimpleNamespace(portable_lib=SimpleNamespace(_unsafe_reset_threadpool=lambda threads: None))
    stand_ins = {
        "torch": SimpleNamespace(from_numpy=Tensor, zeros=lambda size: Tensor(np.zeros(size, np.float32))),
        "executorch": SimpleNamespace(),
        "executorch.kernels": SimpleNamespace(),
        "executorch.kernels.quantized": SimpleNamespace(),
        "executorch.extension": SimpleNamespace(pybindings=bindings),
        "executorch.extension.pybindings": bindings,
        "executorch.runtime": SimpleNamespace(Runtime=SimpleNamespace(get=lambda: runtime)),
    }
    sys.modules |= stand_ins  # type: ignore[arg-type]
