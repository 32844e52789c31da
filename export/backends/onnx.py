"""ONNX: steps -> `.onnx` graphs of symbolic width, one a family, their weights in one file a part.

Quantized weights become MatMulNBits and GatherBlockQuantized, ONNX Runtime's contrib operators for CPUs and phones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch
from torch import Tensor, nn

from pocketdraft.quantize.recipe import Rule
from pocketdraft.quantize.weights import quantize
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import Part

from ..checkpoint import Checkpoint
from ..models.layers import RMSNorm
from ..plan import Plan, Progress, Recipes
from ..quantized import Weights
from ..step import Plain, Positional, Step, families, replace_modules, replace_weights, slots_of, width_axes

if TYPE_CHECKING:
    import onnx_ir

# What ONNX Runtime 1.29, the newest for Android on npm, and those two years before it can open.
OPSET, IR_VERSION = 20, 10
INLINE_BYTES = 1024  # constants up to this size stay in the graph
ALIGNMENT = 64
VERSIONED = ("onnx-ir", "onnxscript")


class FusedRMSNorm(nn.Module):
    """RMSNorm spelled as ONNX Runtime looks for it, to run it as one SimplifiedLayerNormalization."""

    weight: Tensor

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.register_buffer("weight", torch.ones(norm.size) if norm.scale is None else norm.scale.detach())

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(x.pow(2.0).mean(-1, keepdim=True) + self.eps) * self.weight


class ScatteredRows(Plain):
    """K/V rows by ScatterElements, in place where the runtime gives input and output one buffer.

    What index_copy becomes instead moves the axis to the front and back, and so copies the whole cache twice.
    """

    def write_rows(self, cache: Tensor, rows: Tensor, start: Tensor, axis: int, ring: bool) -> Tensor:
        slots = slots_of(cache, rows, start, axis)
        shape = [-1 if i == axis else 1 for i in range(4)]
        return cache.scatter(axis, slots.reshape(shape).expand(rows.shape), rows)


STREAMS = False
OPERATORS = {"cpu": ScatteredRows()}


def check_rule(name: str, module: nn.Linear | nn.Embedding, rule: Rule) -> None:
    """Raises PocketdraftError where ONNX Runtime's kernels do not take a weight quantized so."""
    if rule.dtype == "int2":
        raise PocketdraftError(
            f"The recipe asks for int2 in {name}, the onnx backend has int8 and int4; use dtype = 'int4'."
        )
    if rule.dtype != "float32" and module.weight.shape[1] % 16:
        raise PocketdraftError(
            f"ONNX Runtime quantizes blocks of 16 inputs, {name} has rows of {module.weight.shape[1]}; "
            "put a rule for it with dtype = 'float32' before."
        )


def write(
    plan: Plan, steps: list[Step], weights: Weights, target: Checkpoint, folder: Path, progress: Progress
) -> dict[str, Part]:
    """Writes `FAMILY.onnx` and `PART.bin` into `folder`."""
    quantize_steps(steps, plan.recipes)
    replace_modules(steps, {RMSNorm: FusedRMSNorm})
    files: dict[str, WeightFile] = {}
    chosen = families(steps)
    for index, (family, step) in enumerate(chosen.items()):
        progress(f"Exporting {family}.onnx", index, len(chosen))
        part = files.setdefault(step.spec.part, WeightFile(folder / f"{step.spec.part}.bin"))
        _export(step, part, folder / f"{family}.onnx")
    return {name: Part(file=file.path.name, offset=0, size=file.path.stat().st_size) for name, file in files.items()}


def quantize_steps(steps: list[Step], recipes: Recipes) -> None:
    """Replaces, in place, each weight's module by one that computes as the quantized graph does."""

    def quantized(name: str, module: nn.Linear | nn.Embedding) -> nn.Module:
        rule = recipes.rule_for(name)
        if rule.dtype == "float32":
            return module
        kind = NBitsLinear if isinstance(module, nn.Linear) else BlockQuantizedEmbedding
        return kind(module.weight, rule)

    replace_weights(steps, quantized)


class _Quantized(nn.Module):
    """`packed` uint8 [rows, blocks, bytes], levels shifted up to be unsigned; `scales` float32 [rows, blocks].

    Blocks are of 32 inputs, whatever the recipe's: a longer one, or a row, is many blocks with the same scale.
    With blocks of 64 and more, ONNX Runtime's kernels for one row and for several add up in another order, and
    a verify is no longer decoding bit by bit.
    """

    packed: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, rule: Rule) -> None:
        super().__init__()
        levels, scales = quantize(weight.detach().numpy(), rule, signed=True)
        self.rows, self.columns = weight.shape
        self.bits = rule.bits
        self.block = 32 if self.columns % 32 == 0 else 16
        blocks = self.columns // self.block
        shifted = torch.from_numpy(levels).reshape(self.rows, blocks, self.block).to(torch.int16) + 2 ** (self.bits - 1)
        shifted = shifted.to(torch.uint8)
        packed = shifted if self.bits == 8 else shifted[..., 0::2] | (shifted[..., 1::2] << 4)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", torch.from_numpy(scales).repeat_interleave(blocks // scales.shape[1], 1))

    def restored(self) -> Tensor:
        """float32 [rows, columns]"""
        low = self.packed if self.bits == 8 else torch.stack([self.packed & 15, self.packed >> 4], -1).flatten(-2)
        levels = low.to(torch.float32) - 2 ** (self.bits - 1)
        return (levels * self.scales[..., None]).reshape(self.rows, self.columns)


class NBitsLinear(_Quantized):
    """com.microsoft::MatMulNBits at accuracy level 4: activations are int8 too, one scale a block of a row."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return torch.onnx.ops.symbolic(
                "com.microsoft::MatMulNBits",
                (x, self.packed, self.scales),
                attrs={
                    "K": self.columns,
                    "N": self.rows,
                    "bits": self.bits,
                    "block_size": self.block,
                    "accuracy_level": 4,
                },
                dtype=torch.float32,
                shape=(*x.shape[:-1], self.rows),
                version=1,
            )
        blocks = x.reshape(*x.shape[:-1], -1, self.block)
        scale = (blocks.abs().amax(-1, keepdim=True) / 127.0).clamp_min(1e-30)
        return nn.functional.linear((torch.round(blocks / scale) * scale).reshape(x.shape), self.restored())


class BlockQuantizedEmbedding(_Quantized):
    def forward(self, tokens: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return torch.onnx.ops.symbolic(
                "com.microsoft::GatherBlockQuantized",
                (self.packed.reshape(self.rows, -1), tokens, self.scales),
                attrs={"bits": self.bits, "block_size": self.block, "gather_axis": 0, "quantize_axis": 1},
                dtype=torch.float32,
                shape=(*tokens.shape, self.columns),
                version=1,
            )
        return nn.functional.embedding(tokens, self.restored())


@dataclass
class WeightFile:
    """The tensors of a part's graphs, each stored once however many graphs use it."""

    path: Path
    places: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # digest -> offset, length

    def add(self, data: bytes) -> tuple[int, int]:
        digest = hashlib.sha256(data).digest()
        if digest not in self.places:
            with self.path.open("ab") as file:
                self.places[digest] = (_aligned(file), len(data))
                file.write(data)
        return self.places[digest]


def _aligned(file: BinaryIO) -> int:
    file.write(bytes(-file.tell() % ALIGNMENT))
    return file.tell()


def _export(step: Step, weights: WeightFile, path: Path) -> None:
    import onnx_ir

    width = torch.export.Dim("tokens", min=2)
    program = torch.onnx.export(
        Positional(step).eval(),
        tuple(step.sample_inputs().values()),
        dynamo=True,
        opset_version=OPSET,
        input_names=[tensor.name for tensor in step.spec.inputs],
        output_names=[step.spec.returned(tensor) for tensor in step.spec.outputs],
        dynamic_shapes=(tuple({} if axis is None else {axis: width} for axis in width_axes(step)),),
        verbose=False,
    )
    assert program is not None
    model = program.model
    model.ir_version = IR_VERSION
    _strip(model)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes > INLINE_BYTES:
            offset, length = weights.add(tensor.tobytes())
            value.const_value = onnx_ir.ExternalTensor(
                weights.path.name,
                offset,
                length,
                tensor.dtype,
                shape=onnx_ir.Shape(tensor.shape.numpy()),
                name=str(value.name),
                base_dir=path.parent,
            )
    onnx_ir.save(model, path)


def _strip(model: onnx_ir.Model) -> None:
    """The exporter notes on each node where in whose source tree it came from."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
