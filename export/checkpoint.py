"""Reads a Hugging Face checkpoint as a stream of tensors, and says which one is missing, extra or mis-shaped."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn
from transformers import (
    Gemma4AssistantConfig,
    Gemma4Config,
    Gemma4TextConfig,
    Gemma4UnifiedAssistantConfig,
    Gemma4UnifiedConfig,
    Gemma4UnifiedTextConfig,
    PretrainedConfig,
)

from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import CHAT_TEMPLATE_NAME, Tokens, sha256

from .adapter import Adapter
from .hf_compat import patch_transformers
from .kv_int8 import KV_STEP
from .models.exits_config import ExitsConfig
from .packed import unpacked
from .stored import Places, Stored, adapted, stored_in

CONFIGS: dict[str, type[PretrainedConfig]] = {
    "gemma4": Gemma4Config,
    "gemma4_text": Gemma4TextConfig,
    "gemma4_assistant": Gemma4AssistantConfig,
    # 12B, which embeds images and sounds without towers of their own. Its text model's arithmetic is the others'.
    "gemma4_unified": Gemma4UnifiedConfig,
    "gemma4_unified_text": Gemma4UnifiedTextConfig,
    "gemma4_unified_assistant": Gemma4UnifiedAssistantConfig,
    # Trained here for a target that stays as it is.
    "pocketdraft_exits": ExitsConfig,
}
# A fused Gemma4ForConditionalGeneration keeps its text model one level deeper, beside the other modalities.
PREFIX = re.compile(r"^model\.(language_model\.)?")
OTHER_MODALITIES = re.compile(r"^model\.(vision_tower|audio_tower|embed_vision|embed_audio|vision_embedder)\.")
KV_WEIGHT = re.compile(r"^layers\.(\d+)\.self_attn\.(k_proj|v_proj|k_norm)\.weight$")


@dataclass(frozen=True)
class Checkpoint:
    """A folder with `config.json` and one or several safetensors files, and the adapters to merge into their weights.

    Holds no weights.
    """

    folder: Path
    config: PretrainedConfig
    files: tuple[Path, ...]
    tensors: Mapping[str, Stored]
    adapters: tuple[Adapter, ...] = ()

    @staticmethod
    def open(folder: Path, adapters: Sequence[Path] = ()) -> Checkpoint:
        """`adapters` are merged in their order. Raises PocketdraftError if the folder is no Gemma 4 checkpoint."""
        config = read_config(folder)
        files = tuple(sorted(folder.glob("*.safetensors")))
        if not files:
            raise PocketdraftError(f"{folder} has no *.safetensors file; convert the checkpoint to safetensors first.")
        stored = {name: tensor for path in files for name, tensor in stored_in(path).items()}
        tensors = unpacked(folder / "config.json", getattr(config, "quantization_config", None), stored)
        read = tuple(Adapter.open(adapter) for adapter in adapters)
        for adapter in read:
            adapter.check_against(folder, {name: stored.shape for name, stored in tensors.items()})
        return Checkpoint(folder, config, files, adapted(tensors, read), read)

    @property
    def name(self) -> str:
        """Of the folder, and of the adapters' folders."""
        return " + ".join(path.resolve().name for path in (self.folder, *(a.folder for a in self.adapters)))

    @property
    def tokenizer_file(self) -> Path:
        return self.folder / "tokenizer.json"

    def require(self, kind: str) -> None:
        """Refuses a target where a drafter is wanted, and the reverse, and exits for either."""
        family = self.config.model_type
        if family == ExitsConfig.model_type:
            raise PocketdraftError(f"{self.folder} holds a target's exits; give the folder of a {kind}.")
        actual = "drafter" if family.endswith("_assistant") else "target"
        if actual != kind:
            raise PocketdraftError(
                f"{self.folder} holds a {actual} ({family}), a {kind} was asked for; "
                "give the folders of --target and --drafter the other way round."
            )

    @property
    def text_config(self) -> Gemma4TextConfig:
        return self.config.get_text_config()

    def tokens(self) -> Tokens:
        """Stop tokens are those of generation_config.json where there is one, else config.json's eos."""
        eos, bos = self.text_config.eos_token_id, self.text_config.bos_token_id
        path = self.folder / "generation_config.json"
        if path.is_file():
            generation = json.loads(path.read_text())
            eos, bos = generation.get("eos_token_id", eos), generation.get("bos_token_id", bos)
        stop = eos if isinstance(eos, list) else [] if eos is None else [eos]
        return Tokens(bos=bos, stop=tuple(stop))

    def chat_template(self) -> str | None:
        path = self.folder / CHAT_TEMPLATE_NAME
        return path.read_text() if path.is_file() else None

    @cached_property
    def digests(self) -> dict[Path, str]:
        """sha256 of config and weights by file, in the order of names."""
        return {path: sha256(path) for path in (self.folder / "config.json", *self.files)}

    def sha256(self) -> str:
        """Over config and weights, then over the adapters."""
        digests = [*self.digests.values(), *(adapter.sha256() for adapter in self.adapters)]
        return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()

    def digest_of(self, stored: Stored) -> str:
        """Of all that the tensor is made from."""
        digests = [*(self.digests[file] for file in stored.files), *(adapter.sha256() for adapter in stored.adapters)]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def changed(self) -> Iterator[tuple[str, Tensor]]:
        """Name and value, float32, of each tensor that an adapter changes."""
        for name, stored in self.tensors.items():
            if stored.adapters:
                yield name, stored.read()

    def load_into(self, module: nn.Module, tied: dict[str, str]) -> Places:
        """Finds the tensor of each parameter of `module`, built on the meta device, and loads the small ones.

        The weights of linear layers and embeddings stay on the meta device: the result says where they lie.
        Norms, scalars and orders become float32 (integers stay). `tied` maps a parameter that a checkpoint may
        leave out to the one that it shares. Raises PocketdraftError naming the first missing, extra, mis-shaped
        or non-finite weight.
        """
        wanted = {name.removeprefix("trunk."): p for name, p in module.named_parameters()}
        stacked = stacked_weights(module)
        found: dict[str, Stored] = {}
        for full_name, stored in self.tensors.items():
            name = PREFIX.sub("", full_name)
            name, shape = stacked.get(name, (name, None))
            if name not in wanted:
                name = next((mine for mine, theirs in tied.items() if theirs == name), name)
            if name not in wanted:
                if OTHER_MODALITIES.match(full_name) or KV_STEP.search(name) or self._unused_kv(name):
                    continue
                raise PocketdraftError(
                    f"{self.folder} has a weight {full_name} that {self.config.model_type} does not know; "
                    "check that config.json belongs to these weights."
                )
            self._check(full_name, stored, shape or tuple(wanted[name].shape))
            found[name] = stored
        for mine, theirs in tied.items():
            if mine not in found and theirs in found:
                found[mine] = found[theirs]
        missing = sorted(set(wanted) - set(found))
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise PocketdraftError(
                f"{self.folder} lacks the weight {missing[0]}{more}; the checkpoint is incomplete, download it again."
            )
        return _fill(module, wanted, found)

    def _check(self, name: str, stored: Stored, shape: tuple[int, ...]) -> None:
        if stored.shape != shape:
            raise PocketdraftError(
                f"{self.folder}: weight {name} has shape {list(stored.shape)}, config.json asks for "
                f"{list(shape)}; check that config.json belongs to these weights."
            )

    def _unused_kv(self, name: str) -> bool:
        """KV-shared layers have K/V weights in some checkpoints; nothing reads them."""
        match = KV_WEIGHT.match(name)
        if match is None or not (shared := getattr(self.text_config, "num_kv_shared_layers", None)):
            return False
        return int(match.group(1)) >= self.text_config.num_hidden_layers - shared


def stacked_weights(module: nn.Module) -> dict[str, tuple[str, tuple[int, int, int]]]:
    """By its name in a checkpoint: our table [E * rows, columns] of the same values, and the shape [E, rows, columns]
    that the checkpoint gives it.
    """
    return {
        f"{path}.{name}".removeprefix("trunk."): (f"{path}.{name}.weight".removeprefix("trunk."), shape)
        for path, part in module.named_modules()
        for name, shape in getattr(part, "checkpoint_shapes", {}).items()
    }


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    for prefix in ("", "trunk."):
        try:
            owner = module.get_submodule(prefix + path)
        except AttributeError:
            continue
        if hasattr(owner, leaf):
            return owner, leaf
    raise KeyError(name)


def read_config(folder: Path) -> PretrainedConfig:
    """Of a target or a drafter. Raises PocketdraftError if the folder is no Gemma 4 checkpoint."""
    patch_transformers()
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise PocketdraftError(
            f"{folder} is no checkpoint: it has no config.json; give the folder of a Hugging Face model."
        )
    try:
        raw = json.loads(config_file.read_text())
        kind = raw.get("model_type") if isinstance(raw, dict) else None
    except ValueError as error:
        raise PocketdraftError(f"{config_file} is not JSON ({error}); download the checkpoint again.") from error
    if kind not in CONFIGS:
        raise PocketdraftError(f"{config_file} has model_type {kind!r}; pocketdraft exports {', '.join(CONFIGS)}.")
    try:
        return CONFIGS[kind].from_dict(raw)
    except Exception as error:  # transformers raises several kinds for a wrong value
        raise PocketdraftError(f"{config_file} is not a valid {kind} configuration: {_one_line(error)}.") from error


def _fill(module: nn.Module, wanted: dict[str, nn.Parameter], found: dict[str, Stored]) -> Places:
    """Parameters that share a tensor become one."""
    shared: dict[Stored, nn.Parameter] = {}
    for name, stored in found.items():
        owner, leaf = _owner(module, name)
        large = isinstance(owner, nn.Linear | nn.Embedding)
        if stored not in shared:
            shared[stored] = wanted[name] if large else nn.Parameter(stored.read(), requires_grad=False)
        setattr(owner, leaf, shared[stored])
    return {parameter: stored for stored, parameter in shared.items() if parameter.is_meta}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
