"""A tensor where it lies in a safetensors file, read by rows: a model larger than memory is never held."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pocketdraft.runtime.errors import PocketdraftError

from .adapter import EMBEDDING, HEAD, Adapter, merged, plain_name, untie

# The types of a weight, by the name that safetensors gives them.
DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CHUNK_BYTES = 64 << 20
# By parameter on the meta device. Modules may share one.
Places = dict[Tensor, "Stored"]


@dataclass(frozen=True)
class Stored:
    """`shape` as the file has it; `adapters` change it while it is read. Equal ones are the same tensor."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    adapters: tuple[Adapter, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All that it is read from."""
        return (self.file,)

    @property
    def is_float(self) -> bool:
        return DTYPES[self.dtype].is_floating_point

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns; of several leading dimensions, all are rows."""
        columns = self.shape[-1] if self.shape else 1
        return self._count() // max(columns, 1), columns

    def read(self) -> Tensor:
        """The whole, float32 if it is a float of any kind."""
        return merged(self.adapters, self.name, self._rows(0, self.matrix[0]).reshape(self.shape))

    def chunks(self) -> Iterator[Tensor]:
        """float32 [rows, columns], some rows at a time: about 64 MB of float32, and a row at least."""
        rows, columns = self.matrix
        step = max(1, CHUNK_BYTES // (4 * columns))
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            yield merged(self.adapters, self.name, self._rows(start, stop), slice(start, stop))

    def rows_at(self, rows: Iterable[int]) -> Tensor:
        """float32 [N, columns]: the rows of these numbers."""
        return torch.cat([self._rows(row, row + 1) for row in rows])

    def _rows(self, start: int, stop: int) -> Tensor:
        """Raises PocketdraftError for NaN and infinity. Reads plainly: mapped pages would count as memory in use."""
        dtype, columns = DTYPES[self.dtype], self.matrix[1]
        with self.file.open("rb") as file:
            file.seek(self.offset + start * columns * dtype.itemsize)
            raw = bytearray(file.read((stop - start) * columns * dtype.itemsize))
        tensor = torch.frombuffer(raw, dtype=dtype).reshape(stop - start, columns) if raw else torch.empty(0, columns)
        if not self.is_float:
            return tensor
        if not bool(torch.isfinite(tensor).all()):
            raise PocketdraftError(
                f"{self.file}: weight {self.name} holds NaN or infinity; the training run or the download went wrong."
            )
        return tensor.to(torch.float32)

    def _count(self) -> int:
        return int(torch.Size(self.shape).numel())


def stored_in(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name. Raises PocketdraftError if it is damaged."""
    try:
        with safe_open(path, framework="pt"):  # checks header and length
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise PocketdraftError(f"{path} is damaged ({said}); download it again.") from error
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise PocketdraftError(
                f"{path}: weight {name} has type {entry['dtype']}; pocketdraft reads {', '.join(DTYPES)}."
            )
        start = 8 + length + entry["data_offsets"][0]
        found[name] = Stored(path, name, entry["dtype"], tuple(entry["shape"]), start)
    return found


def head_of_file(tensors: Iterable[tuple[str, str, Sequence[int], int]]) -> bytes:
    """What a safetensors file begins with: of each tensor its name, type, shape and bytes, in the order of values."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape, size in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def adapted(tensors: Mapping[str, Stored], adapters: tuple[Adapter, ...]) -> dict[str, Stored]:
    """The tensors with what changes each. A head that was tied is one of its own if its embedding changes, or it."""
    found = {}
    for name, stored in tensors.items():
        found[name] = _adapted(stored, adapters)
        if plain_name(name) == EMBEDDING and untie(adapters, list(tensors)):
            found[HEAD] = _adapted(replace(stored, name=HEAD), adapters)
    return found


def _adapted(stored: Stored, adapters: tuple[Adapter, ...]) -> Stored:
    return replace(stored, adapters=tuple(adapter for adapter in adapters if adapter.touches(stored.name)))


def load(places: Places, *models: nn.Module) -> None:
    """Reads, float32, the weights that the models have on the meta device."""
    loaded = {
        parameter: nn.Parameter(stored.read().reshape(parameter.shape), requires_grad=False)
        for parameter, stored in places.items()
    }
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding) and module.weight.is_meta:
                module.weight = loaded[module.weight]
