"""A copy of a checkpoint, some of whose weights are then written anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .stored import DTYPES, Stored, head_of_file

WEIGHTS_NAME = "model.safetensors"
HEAD = "lm_head.weight"


class Rewritten:
    """One safetensors file with the source's names, types and values, and all its other files."""

    def __init__(
        self, source: Checkpoint, folder: Path, own_head: Stored | None = None, added: Sequence[str] = ()
    ) -> None:
        """`own_head` is the table that the head shares, and shall not share here. `added` are names of new scalars."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in source.folder.iterdir():
            if path.is_file() and ".safetensors" not in path.name:
                shutil.copyfile(path, folder / path.name)
        tensors = {name: stored for name, stored in source.tensors.items() if name not in added}
        if own_head is not None:
            tensors[HEAD] = own_head
        _rewrite_config(folder / "config.json", own_head is not None)
        self._path = folder / WEIGHTS_NAME
        self._places: dict[str, tuple[int, torch.dtype]] = {}
        own = [(name, one.dtype, one.shape, _size(one)) for name, one in tensors.items()]
        with self._path.open("wb") as file:
            file.write(head_of_file([*own, *((name, "F32", (1,), 4) for name in added)]))
            for name, stored in tensors.items():
                self._places[name] = file.tell(), DTYPES[stored.dtype]
                for chunk in stored.chunks():
                    _write(file, chunk, DTYPES[stored.dtype])
            for name in added:
                self._places[name] = file.tell(), torch.float32
                file.write(bytes(4))

    def put(self, name: str, weight: Tensor) -> Tensor:
        """Writes a weight in the place of the source's; returns it as it can be read again."""
        offset, dtype = self._places[name]
        with self._path.open("r+b") as file:
            file.seek(offset)
            _write(file, weight, dtype)
        return weight.to(dtype).to(torch.float32)


def _size(stored: Stored) -> int:
    rows, columns = stored.matrix
    return rows * columns * DTYPES[stored.dtype].itemsize


def _write(file: BinaryIO, tensor: Tensor, dtype: torch.dtype) -> None:
    file.write(tensor.to(dtype).contiguous().view(torch.uint8).numpy().tobytes())


def _rewrite_config(path: Path, untie: bool) -> None:
    config = json.loads(path.read_text())
    config.pop("quantization_config", None)  # weights that were packed are written as floats
    for part in (config, config.get("text_config")):
        if part is not None and untie:
            part["tie_word_embeddings"] = False
    path.write_text(json.dumps(config, indent=2))
