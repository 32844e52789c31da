"""A LiteRT flatbuffer that was converted without weights gets them: inputs become constants, filled as a stream.

Tensors' bytes lie behind the flatbuffer proper, which may have 2 GB at most, at offsets of 64 bits that its buffers
give (`offset` and `size` in the schema). A buffer is stored once, whichever signatures use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from .quantized import Quantized
from .rewrites import Rewriter

PIECE_BYTES = 1 << 20
ALIGNMENT = 64  # of a buffer within the file: a cache line
TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "int4": schema.TensorType.INT4,
    "int2": schema.TensorType.INT2,
}
IDENTIFIER = b"TFL3"


class _Scales(schema.QuantizationParametersT):  # type: ignore[misc]
    """One scale a row. Written once however many signatures have the tensor: a row's scale takes 12 bytes."""

    def __init__(self, scales: np.ndarray) -> None:
        super().__init__()
        self.scale, self.zeroPoint = scales.reshape(-1), np.zeros(scales.size, np.int64)
        self.quantizedDimension = 0
        self._written: tuple[flatbuffers.Builder, int] | None = None

    def Pack(self, builder: flatbuffers.Builder) -> int:
        if self._written is None or self._written[0] is not builder:
            self._written = builder, super().Pack(builder)
        return self._written[1]


@dataclass
class _Outside:
    """What will lie behind the flatbuffer: by number of its buffer, bytes or a weight's levels."""

    model: Any
    contents: dict[int, bytes | Quantized] = field(default_factory=dict)

    def add(self, content: bytes | Quantized) -> int:
        self.model.buffers.append(schema.BufferT())
        self.contents[len(self.model.buffers) - 1] = content
        return len(self.model.buffers) - 1

    def is_zero(self, number: int) -> bool:
        """Whether a buffer is a constant of zeros."""
        content = self.contents.get(number)
        return isinstance(content, bytes) and not any(content)

    def place(self, start: int) -> int:
        """Gives each buffer its offset; returns the end of the last."""
        for number, content in self.contents.items():
            buffer = self.model.buffers[number]
            buffer.data, buffer.offset = None, -(-start // ALIGNMENT) * ALIGNMENT
            buffer.size = len(content) if isinstance(content, bytes) else content.levels_bytes
            start = buffer.offset + buffer.size
        return start


def fill(structure: bytes, weights: Mapping[str, Quantized], path: Path) -> None:
    """Writes the flatbuffer `structure` to `path`, each input that `weights` names made a constant."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(structure, 0))
    outside = _Outside(model)
    _move_constants(model, structure, outside)
    parameters: dict[str, tuple[int, Any]] = {}
    for signature in model.signatureDefs:
        graph = model.subgraphs[signature.subgraphIndex]
        for given in list(signature.inputs):
            name = given.name.decode()
            if name in weights:
                if name not in parameters:
                    parameters[name] = _constant(weights[name], outside)
                _make_constant(graph, given.tensorIndex, weights[name], *parameters[name])
                signature.inputs.remove(given)
                graph.inputs = np.array([i for i in graph.inputs if i != given.tensorIndex], np.int32)
    rewriter = Rewriter(model, outside.add)
    rewriter.int8_lookups({buffer: own.scale for buffer, own in parameters.values() if isinstance(own, _Scales)})
    rewriter.scatters(outside.is_zero)
    outside.place(1)  # any offset: it is of fixed length, so that the flatbuffer's length is known
    outside.place(len(_packed(model)))
    with path.open("wb") as file:
        file.write(_packed(model))
        for number, content in outside.contents.items():
            file.seek(model.buffers[number].offset)
            _write(content, file)


def _move_constants(model: Any, structure: bytes, outside: _Outside) -> None:
    """Every tensor's buffer lies outside, aligned: what the schema's packer writes inside is not."""
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors} - {0}
    for number in used:
        buffer = model.buffers[number]
        if buffer.offset and buffer.offset > 1:
            outside.contents[number] = structure[buffer.offset : buffer.offset + buffer.size]
        elif buffer.data is not None and len(buffer.data):
            outside.contents[number] = bytes(buffer.data)


def _constant(weight: Quantized, outside: _Outside) -> tuple[int, Any]:
    """The buffer of the levels; and the scales: a tensor's parameters if one a row, a buffer if one a block."""
    buffer = outside.add(weight)
    if weight.rule.dtype == "float32":
        return buffer, None
    scales = weight.scales()
    if not weight.rule.block:
        return buffer, _Scales(scales)
    return buffer, outside.add(scales.astype(np.float16).tobytes())


def _make_constant(graph: Any, index: int, weight: Quantized, buffer: int, scales: Any) -> None:
    tensor = graph.tensors[index]
    tensor.buffer, tensor.type = buffer, TYPES[weight.rule.dtype]
    if isinstance(scales, int):
        own = schema.TensorT()
        own.name, own.type = tensor.name + b"_scales", schema.TensorType.FLOAT16
        own.shape, own.hasRank, own.buffer = np.array(weight.scales_shape, np.int32), True, scales
        graph.tensors.append(own)
        details = schema.BlockwiseQuantizationT()
        details.scales, details.zeroPoints, details.blockSize = len(graph.tensors) - 1, -1, weight.rule.block
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
        tensor.quantization.details = details
    elif scales is not None:
        tensor.quantization = scales


def _packed(model: Any) -> bytes:
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def _write(content: bytes | Quantized, file: BinaryIO) -> None:
    if isinstance(content, bytes):
        file.write(content)
        return
    with content.open() as source:
        left = content.levels_bytes
        while left:
            piece = source.read(min(left, PIECE_BYTES))
            file.write(piece)
            left -= len(piece)
