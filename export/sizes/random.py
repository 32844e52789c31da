"""Checkpoints of true shape with random weights: for the memory and the speed of sizes that nothing is trained at.

Written tensor by tensor, in chunks, so that a model of any size takes a few megabytes of memory.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from transformers import AutoModelForCausalLM

from pocketdraft.runtime.errors import PocketdraftError

from ..hf_compat import patch_transformers
from ..stored import head_of_file
from ..tiny import TARGET_DIR
from ..tiny.configs import weight_scale
from . import AssistantConfig, Pair, TextConfig, configs, resized, with_text

SHARD_BYTES = 2_000_000_000
CHUNK = 1 << 22  # values made at a time
PARTS = ("target", "drafter")


def random_checkpoint(of: str | Pair, folder: Path, layers: int | None = None, seed: int = 0) -> tuple[Path, Path]:
    """Writes `folder/target` and `folder/drafter`, bfloat16 in files of 2 GB, and gives the two.

    A tensor of more than 2 GB has a file of its own. Weights have the scale of `export.tiny.configs.random_pair`;
    the tokenizer is the embedded pair's. `layers` is as in `cut`. Raises PocketdraftError if either folder exists,
    the disk is too full, or there is no such size.
    """
    pair = configs(of) if isinstance(of, str) else of
    if layers is not None:
        pair = cut(pair, layers)
    places = folder / PARTS[0], folder / PARTS[1]
    parts = [(config, list(_tensors(config))) for config in pair]
    _check_place(places, sum(tensor.size for _, tensors in parts for tensor in tensors))
    for place, (config, tensors) in zip(places, parts, strict=True):
        place.mkdir(parents=True)
        config.save_pretrained(place)
        shutil.copyfile(TARGET_DIR / "tokenizer.json", place / "tokenizer.json")
        _write(place, tensors, torch.Generator().manual_seed(seed))
    return places


def cut(pair: Pair, layers: int) -> Pair:
    """The pair with a target of `layers` layers and a drafter of at most as many.

    KV-shared layers stay the same part of the whole, rounded down, as long as two own K/V. Kept are the last layers
    that own it and the last that share it: both groups end in a full layer, as the whole model's do. Of the drafter,
    the last layers are kept.
    Raises PocketdraftError for a number that the target does not have, or below two.
    """
    target, drafter = pair
    depth, shared = target.num_hidden_layers, target.num_kv_shared_layers
    if not 2 <= layers <= depth:
        raise PocketdraftError(f"{layers} layers were asked for of a target with {depth}; give 2 to {depth}.")
    sharing = min(layers * shared // depth, layers - 2)
    owners = target.layer_types[: depth - shared][sharing - layers :]
    kinds = owners + target.layer_types[depth - sharing :]
    own = drafter.text_config.layer_types[-layers:]
    return (
        resized(target, {"num_hidden_layers": layers, "layer_types": kinds, "num_kv_shared_layers": sharing}),
        with_text(drafter, {}, {"num_hidden_layers": len(own), "layer_types": own, "num_kv_shared_layers": len(own)}),
    )


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: str  # safetensors' name of it

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * {"BF16": 2, "I64": 8}[self.dtype]


def _tensors(config: TextConfig | AssistantConfig) -> Iterator[_Tensor]:
    """What transformers saves of such a model: tied weights once."""
    patch_transformers()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            yield _Tensor(name, tuple(tensor.shape), "BF16" if tensor.is_floating_point() else "I64")


def _check_place(places: tuple[Path, ...], size: int) -> None:
    for place in places:
        if place.exists():
            raise PocketdraftError(f"{place} exists; remove it or give another folder.")
    root = next(folder for folder in places[0].absolute().parents if folder.exists())
    free = shutil.disk_usage(root).free
    if free < size:
        raise PocketdraftError(
            f"The checkpoints take {size / 1e6:.0f} MB, {free / 1e6:.0f} MB are free in {root}; "
            "free space or give another folder."
        )


def _write(folder: Path, tensors: list[_Tensor], generator: torch.Generator) -> None:
    shards: list[list[_Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.size for other in shards[-1]) + tensor.size > SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        index = {
            "metadata": {"total_size": sum(tensor.size for tensor in tensors)},
            "weight_map": {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            _write_shard(file, shard, generator)


def _write_shard(file: BinaryIO, shard: list[_Tensor], generator: torch.Generator) -> None:
    file.write(head_of_file((tensor.name, tensor.dtype, tensor.shape, tensor.size) for tensor in shard))
    for tensor in shard:
        for chunk in _values(tensor, generator):
            file.write(chunk.view(torch.uint8).numpy().data)


def _values(tensor: _Tensor, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """The tensor's values in chunks of one dimension. The only integers are a drafter's `token_ordering`."""
    count = math.prod(tensor.shape)
    if tensor.dtype == "I64":
        yield torch.randperm(count, generator=generator)
        return
    mean, std = weight_scale(tensor.name, tensor.shape)
    values = torch.empty(min(count, CHUNK))
    for start in range(0, count, CHUNK):
        chunk = values[: count - start]
        yield (chunk.normal_(mean, std, generator=generator) if std else chunk.fill_(mean)).to(torch.bfloat16)
