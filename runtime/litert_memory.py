"""A LiteRT buffer's own memory as an array.

The Python binding reads and writes buffers by copying them; LiteRT's C API gives their address. At 47 M parameters the
copies are 4 % of a round.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import PocketdraftError
from .graphs import TensorSpec


def view(buffer: Any, spec: TensorSpec) -> npt.NDArray[Any]:
    """The memory of a `TensorBuffer` on the host, in the shape and dtype of `spec`. It keeps the buffer alive."""
    address, capsule = ctypes.c_void_p(), buffer.capsule
    pointer = _pointer(capsule, _name(capsule))
    status = _library().LiteRtGetTensorBufferHostMemory(ctypes.c_void_p(pointer), ctypes.byref(address))
    if status or not address.value:
        raise PocketdraftError(
            f"LiteRT gives no memory for {spec.name} (status {status}); export the bundle for the CPU."
        )
    size = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
    memory: Any = (ctypes.c_char * size).from_address(address.value)
    memory.owner = buffer
    array: npt.NDArray[Any] = np.frombuffer(memory, spec.dtype).reshape(spec.shape)
    return array


@cache
def _library() -> ctypes.CDLL:
    import ai_edge_litert

    folder = Path(ai_edge_litert.__file__).parent
    return ctypes.CDLL(str(next(folder.glob("libLiteRt.*"))))


_name = ctypes.pythonapi.PyCapsule_GetName
_name.restype, _name.argtypes = ctypes.c_char_p, [ctypes.py_object]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
