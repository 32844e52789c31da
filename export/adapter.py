"""A LoRA adapter in PEFT's format, merged into a checkpoint's weights while they are read, some rows at a time.

The format is PEFT's (`utils/save_and_load.py`, `tuners/lora/layer.py` of 0.21): `adapter_config.json` beside
`adapter_model.safetensors`. A linear weight becomes W + s B A, an embedding's table W + s (B A)^T, with
s = alpha / r, or alpha / sqrt(r) for rsLoRA; modules that were saved whole take W's place. PEFT is not needed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import sha256

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
MERGE = "merge it with PEFT's merge_and_unload() and give the merged checkpoint."
# Ours are names without these: PEFT's own prefix, and where a text-only and a fused Gemma 4 keep the text model.
PREFIX = re.compile(r"^(base_model\.model\.)?(model\.(language_model\.)?)?")
OTHER_MODALITIES = re.compile(r"^(vision_tower|audio_tower|embed_vision|embed_audio|vision_embedder)\.")
HALF = re.compile(r"^(?P<module>.+)\.(lora_(?P<linear>[AB])(\.default)?\.weight|lora_embedding_(?P<table>[AB]))$")
# Whatever makes an adapter more than a sum of W and BA, or its W another than the checkpoint's.
NOT_A_SUM = (
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "target_parameters",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
WHOLE = slice(None)


class _Config(BaseModel):
    """What we read of adapter_config.json; the rest is about training, or refused."""

    model_config = ConfigDict(extra="allow")
    peft_type: str
    r: PositiveInt = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, PositiveInt] = {}
    alpha_pattern: dict[str, float] = {}
    base_model_name_or_path: str | None = None

    def rank(self, module: str) -> int:
        return next((r for pattern, r in self.rank_pattern.items() if _matches(pattern, module)), self.r)

    def scale(self, module: str) -> float:
        rank = self.rank(module)
        alpha = next((a for pattern, a in self.alpha_pattern.items() if _matches(pattern, module)), self.lora_alpha)
        return alpha / (rank**0.5 if self.use_rslora else rank)


@dataclass(frozen=True)
class Pair:
    """The halves of one delta, by their keys in the file: A [rank, in] and B [out, rank]."""

    kind: Literal["linear", "table"]
    a: str
    b: str
    rank: int
    scale: float


@dataclass(frozen=True, eq=False)
class Adapter:
    """`pairs` and `whole` (the key of a module saved whole) are by our names: `layers.0.mlp.up_proj.weight`."""

    folder: Path
    base: str
    pairs: Mapping[str, Pair]
    whole: Mapping[str, str]

    @staticmethod
    def open(folder: Path) -> Adapter:
        """Reads config and names, no weights. Raises PocketdraftError for what is no LoRA, or not one to be merged."""
        config = _read_config(folder)
        halves: dict[str, dict[str, str]] = {}
        kinds: dict[str, Literal["linear", "table"]] = {}
        whole = {}
        for key in _shapes(folder / WEIGHTS_NAME):
            if OTHER_MODALITIES.match(plain_name(key)):
                continue
            if half := HALF.match(key):
                module = half["module"]
                kinds[module] = "linear" if half["linear"] else "table"
                halves.setdefault(module, {})[half["linear"] or half["table"]] = key
            elif "lora_" in key:
                raise PocketdraftError(
                    f"{folder / WEIGHTS_NAME} has a weight {key}, which is no half of a LoRA; {MERGE}"
                )
            else:
                whole[plain_name(key.replace(".base_layer.", "."))] = key
        pairs = {}
        for module, keys in halves.items():
            if len(keys) < 2:
                (key,) = keys.values()
                raise PocketdraftError(
                    f"{folder / WEIGHTS_NAME} has {key} without its other half; save the adapter again."
                )
            path = module.removeprefix("base_model.model.")
            pairs[plain_name(f"{module}.weight")] = Pair(
                kinds[module], keys["A"], keys["B"], config.rank(path), config.scale(path)
            )
        if not pairs and not whole:
            raise PocketdraftError(f"{folder / WEIGHTS_NAME} changes nothing of the text model; leave it out.")
        return Adapter(folder, config.base_model_name_or_path or "another model", pairs, whole)

    def check_against(self, checkpoint: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Does every weight of the adapter fit one of the checkpoint's `shapes`, by the checkpoint's names?

        Reads the adapter's weights. Raises PocketdraftError naming the first that matches none, is mis-shaped or
        holds NaN or infinity.
        """
        known = {plain_name(name): shape for name, shape in shapes.items()}
        if EMBEDDING in known:  # a head that is tied and left out
            known.setdefault(HEAD, known[EMBEDDING])
        for name, shape in self._wanted(known, checkpoint).items():
            tensor = self._read(name)
            if tuple(tensor.shape) != shape:
                raise PocketdraftError(
                    f"{self.folder / WEIGHTS_NAME}: weight {name} has shape {list(tensor.shape)}, {checkpoint} and "
                    f"{CONFIG_NAME} ask for {list(shape)}; give the checkpoint that it was trained on, {self.base}."
                )
            if not bool(torch.isfinite(tensor).all()):
                raise PocketdraftError(
                    f"{self.folder / WEIGHTS_NAME}: weight {name} holds NaN or infinity; "
                    "the training run or the download went wrong."
                )

    def delta(self, name: str, rows: slice = WHOLE) -> Tensor | None:
        """What to add to these rows of the weight `name` (a checkpoint's name or ours), float32; None for nothing."""
        pair = self.pairs.get(plain_name(name))
        if pair is None:
            return None
        if pair.kind == "linear":
            return pair.scale * (self._read(pair.b, rows) @ self._read(pair.a))
        return pair.scale * (self._read(pair.b) @ self._read(pair.a, WHOLE, rows)).T

    def replacement(self, name: str, rows: slice = WHOLE) -> Tensor | None:
        """These rows of a weight that was saved whole, float32; None if it was not."""
        key = self.whole.get(plain_name(name))
        return None if key is None else self._read(key, rows)

    def touches(self, name: str) -> bool:
        return plain_name(name) in self.pairs or plain_name(name) in self.whole

    @cache  # noqa: B019 (a handful of adapters a process)
    def sha256(self) -> str:
        """Over config and weights."""
        digests = [sha256(self.folder / name) for name in (CONFIG_NAME, WEIGHTS_NAME)]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def _wanted(self, known: Mapping[str, tuple[int, ...]], checkpoint: Path) -> dict[str, tuple[int, ...]]:
        """The shape that each of our tensors must have, by its key."""
        wanted: dict[str, tuple[int, ...]] = {}
        for name in (*self.whole, *self.pairs):
            if name not in known:
                key = self.whole[name] if name in self.whole else self.pairs[name].a
                raise PocketdraftError(
                    f"{self.folder / WEIGHTS_NAME}: weight {key} matches no weight of {checkpoint}; "
                    f"give the checkpoint that it was trained on, {self.base}."
                )
        wanted |= {key: known[name] for name, key in self.whole.items()}
        for name, pair in self.pairs.items():
            if len(known[name]) != 2:
                raise PocketdraftError(
                    f"{self.folder / WEIGHTS_NAME}: weight {pair.a} is of {name}, which is no matrix; {MERGE}"
                )
            outputs, inputs = known[name] if pair.kind == "linear" else known[name][::-1]
            wanted |= {pair.a: (pair.rank, inputs), pair.b: (outputs, pair.rank)}
        return wanted

    def _read(self, key: str, *where: slice) -> Tensor:
        path = self.folder / WEIGHTS_NAME
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_slice(key)[where] if where else file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
        return tensor.to(torch.float32)


def merged(adapters: Sequence[Adapter], name: str, weight: Tensor, rows: slice = WHOLE) -> Tensor:
    """These rows of the weight `name`, given as `weight`, after all adapters in their order: float32 if any touches it.

    PEFT would round the sum to the checkpoint's type; here it stays as it is, for the quantizer to round once.
    """
    for adapter in adapters:
        if (replacement := adapter.replacement(name, rows)) is not None:
            weight = replacement
        if (delta := adapter.delta(name, rows)) is not None:
            weight = weight.to(torch.float32) + delta
    return weight


def untie(adapters: Sequence[Adapter], names: Sequence[str]) -> bool:
    """Whether adapters part a head from the embedding that a checkpoint of these weights ties it to.

    PEFT trains an adapter of the one without touching the other.
    """
    plain = {plain_name(name) for name in names}
    return HEAD not in plain and EMBEDDING in plain and any(a.touches(EMBEDDING) or a.touches(HEAD) for a in adapters)


def plain_name(name: str) -> str:
    """Ours for PEFT's or a checkpoint's: the same in every layout."""
    return PREFIX.sub("", name)


def _matches(pattern: str, module: str) -> bool:
    """As PEFT reads the keys of `rank_pattern` and `alpha_pattern`."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def _read_config(folder: Path) -> _Config:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise PocketdraftError(f"{folder} is no adapter: it has no {CONFIG_NAME}; give the folder that PEFT saved.")
    if not (folder / WEIGHTS_NAME).is_file():
        raise PocketdraftError(f"{folder} has no {WEIGHTS_NAME}; save the adapter as safetensors.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        given = {key: value for key, value in raw.items() if value is not None} if isinstance(raw, dict) else raw
        config = _Config.model_validate(given)
        for pattern in (*config.rank_pattern, *config.alpha_pattern):
            re.compile(pattern)
    except (ValueError, ValidationError, re.error) as error:
        raise PocketdraftError(f"{path} is no adapter's configuration ({_one_line(error)}); save it again.") from error
    if config.peft_type != "LORA":
        raise PocketdraftError(f"{path} has peft_type {config.peft_type}, only LORA is a sum of weights; {MERGE}")
    if config.bias != "none":
        raise PocketdraftError(f"{path} has bias {config.bias!r}, the graphs have no biases to add to; {MERGE}")
    for key in NOT_A_SUM:
        if value := (config.model_extra or {}).get(key):
            raise PocketdraftError(f"{path} has {key} {json.dumps(value)}, which is more than W + BA; {MERGE}")
    start = str(config.init_lora_weights).lower()
    if start.startswith(CHANGES_THE_BASE):
        raise PocketdraftError(f"{path} has init_lora_weights {start}, which changed the base's weights too; {MERGE}")
    return config


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> PocketdraftError:
    return PocketdraftError(f"{path} is damaged ({_one_line(error)}); download it again.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
