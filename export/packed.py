"""Checkpoints that are quantized already: their integers, unpacked a few rows at a time.

What comes out is level * scale in float32, which lies on a grid, and a recipe of the same precision reproduces it
level by level (see `quantize.grid`; `own_recipe` finds that recipe). Three formats, all symmetric:

    compressed-tensors   `weight_packed` int32 or `weight` int8, `weight_scale` a row or a group    (vLLM; Google's
                         Gemma 4 `-qat-w4a16-ct`)
    gptq                 `qweight` int32 packed along the inputs, `scales`; without act-order
    gemma                `weight` or `embedding_quantized`, int8 or 2 and 4 bits in bytes           (Google's Gemma 4
                         `-qat-mobile-transformers`, which litert-torch#1044 loads as if it were float)

Scales of activations are left out, since the runtimes find ranges on the fly; those of K/V: `kv_int8.steps_in`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pocketdraft.runtime.errors import PocketdraftError

from .stored import Stored

Tensors = Mapping[str, Stored]
Along = Literal["rows", "inputs"]
KNOWN = "compressed-tensors, gptq (both symmetric, without act-order) and gemma"
MEND = "give the checkpoint that it was made from, or a copy with float weights"
# What goes with a packed weight, and is no weight itself.
BESIDE = re.compile(
    r"\.(weight_packed|weight_scale|weight_shape|weight_zero_point|weight_g_idx|input_scale|output_scale|k_scale|v_scale"
    r"|qweight|qzeros|scales|g_idx|embedding_quantized|embedding_scale|(input|output)_activation_scale)$"
)


@dataclass(frozen=True, kw_only=True)
class Packed(Stored):
    """`shape` is that of the weight. `levels` holds integers of so many bits, the first in a word's lowest bits."""

    levels: Stored
    scales: Stored
    bits: int
    along: Along

    @property
    def files(self) -> tuple[Path, ...]:
        return self.levels.file, self.scales.file

    def _rows(self, start: int, stop: int) -> Tensor:
        columns = self.matrix[1]
        if self.along == "rows":
            levels = _unpacked(self.levels._rows(start, stop), self.bits)[:, :columns]
            scales = self.scales._rows(start, stop)
        else:
            levels = _unpacked(self.levels.read()[:, start:stop].T.contiguous(), self.bits)[:, :columns]
            scales = self.scales.read()[:, start:stop].T
        return levels.to(torch.float32) * scales.repeat_interleave(columns // scales.shape[1], 1)

    @property
    def block(self) -> int:
        """Inputs to a scale; 0 for a whole row."""
        groups = self.scales.matrix[1] if self.along == "rows" else self.scales.matrix[0]
        return 0 if groups == 1 else self.matrix[1] // groups


def unpacked(config_file: Path, config: Mapping[str, Any] | None, tensors: Tensors) -> Tensors:
    """The tensors with packed weights under the names that they have unpacked. `config` is `quantization_config`.

    Raises PocketdraftError for a format that is not read.
    """
    if config is None:
        return tensors
    method = config.get("quant_method")
    find = {"compressed-tensors": _compressed_tensors, "gptq": _gptq, "gemma": _gemma}.get(str(method))
    if find is None:
        raise PocketdraftError(f"{config_file} has quant_method {method!r}; pocketdraft reads {KNOWN}: {MEND}.")
    packed = find(config_file, config, tensors)
    return {name: stored for name, stored in tensors.items() if not BESIDE.search(name)} | packed


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """Signed levels int32 of words [rows, N] of integers: unsigned ones are shifted down by half their range."""
    size = words.element_size() * 8
    if bits == size == 8 and words.dtype == torch.int8:
        return words.to(torch.int32)
    shifts = torch.arange(0, size, bits, dtype=torch.int32)
    levels = (words.to(torch.int32)[..., None] >> shifts) & ((1 << bits) - 1)
    return levels.flatten(1) - (1 << (bits - 1))


def _compressed_tensors(config_file: Path, config: Mapping[str, Any], tensors: Tensors) -> dict[str, Packed]:
    for name, group in (config.get("config_groups") or {}).items():
        weights = group.get("weights") or {}
        if weights.get("type", "int") != "int" or not weights.get("symmetric", True):
            raise PocketdraftError(
                f"{config_file} has type {weights.get('type')!r} and symmetric={weights.get('symmetric')} for {name}; "
                f"pocketdraft reads symmetric integers: {MEND}."
            )
    found = {}
    for name, stored in tensors.items():
        base, _, kind = name.rpartition(".")
        if kind in ("weight_zero_point", "weight_g_idx"):
            raise PocketdraftError(f"{config_file.parent} has {name}: zero points and act-order are not read; {MEND}.")
        if kind == "weight_packed":
            rows, columns = (int(n) for n in _beside(tensors, name, f"{base}.weight_shape").read().tolist())
            bits = next((b for b in (2, 4, 8) if -(-columns * b // 32) == stored.matrix[1]), 0)
            if not bits:
                raise PocketdraftError(f"{config_file.parent}: {name} is packed to neither 2, 4 nor 8 bits; {MEND}.")
            found[f"{base}.weight"] = _by_rows(base, (rows, columns), stored, tensors, bits)
        elif kind == "weight" and f"{base}.weight_scale" in tensors:
            if stored.dtype != "I8":
                raise PocketdraftError(f"{config_file.parent}: {name} is {stored.dtype}, not integers; {MEND}.")
            found[name] = _by_rows(base, stored.matrix, stored, tensors, 8)
    return found


def _gemma(config_file: Path, config: Mapping[str, Any], tensors: Tensors) -> dict[str, Packed]:
    patterns = [(re.compile(p), entry) for p, entry in (config.get("module_quant_configs") or {}).items()]
    found = {}
    for name, stored in tensors.items():
        base, _, kind = name.rpartition(".")
        if stored.dtype not in ("U8", "I8") or kind not in ("weight", "embedding_quantized"):
            continue
        entry: Mapping[str, Any] = next((entry for pattern, entry in patterns if pattern.search(base)), {})
        bits = int(entry.get("num_bits", config.get("num_bits", 4)))
        if bits not in (2, 4, 8):
            raise PocketdraftError(f"{config_file} gives {base} {bits} bits; pocketdraft reads 2, 4 and 8: {MEND}.")
        shape = stored.matrix[0], stored.matrix[1] * 8 // bits
        scale = "weight_scale" if kind == "weight" else "embedding_scale"
        found[f"{base}.weight"] = _by_rows(base, shape, stored, tensors, bits, scale)
    return found


def _gptq(config_file: Path, config: Mapping[str, Any], tensors: Tensors) -> dict[str, Packed]:
    bits = int(config.get("bits", 0))
    if bits not in (2, 4, 8) or not config.get("sym", False) or config.get("desc_act", False):
        raise PocketdraftError(
            f"{config_file} has bits={bits}, sym={config.get('sym')}, desc_act={config.get('desc_act')}; "
            f"pocketdraft reads 2, 4 and 8 bits, symmetric, without act-order: {MEND}."
        )
    found = {}
    for name, stored in tensors.items():
        base, _, kind = name.rpartition(".")
        if kind == "qweight":
            shape = stored.matrix[1], stored.matrix[0] * 32 // bits
            scales = _beside(tensors, name, f"{base}.scales")
            found[f"{base}.weight"] = _packed(base, shape, stored, scales, bits, "inputs")
    return found


def _by_rows(
    base: str, shape: tuple[int, int], levels: Stored, tensors: Tensors, bits: int, scale: str = "weight_scale"
) -> Packed:
    scales = _beside(tensors, levels.name, f"{base}.{scale}")
    if scales.matrix[0] != shape[0]:
        raise PocketdraftError(
            f"{scales.file}: {scales.name} has shape {list(scales.shape)} for {shape[0]} rows; scales a row or a group "
            f"of inputs are read: {MEND}."
        )
    return _packed(base, shape, levels, scales, bits, "rows")


def _packed(base: str, shape: tuple[int, int], levels: Stored, scales: Stored, bits: int, along: Along) -> Packed:
    return Packed(
        file=levels.file,
        name=f"{base}.weight",
        dtype="F32",
        shape=shape,
        offset=levels.offset,
        levels=levels,
        scales=scales,
        bits=bits,
        along=along,
    )


def _beside(tensors: Tensors, name: str, wanted: str) -> Stored:
    if wanted not in tensors:
        raise PocketdraftError(f"{tensors[name].file} has {name} without {wanted}; download the checkpoint again.")
    return tensors[wanted]
