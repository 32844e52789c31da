"""Reads a Hugging Face checkpoint as a stream of tensors, and says which one is missing, extra or mis-shaped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PretrainedConfig

from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import CHAT_TEMPLATE_NAME, Tokens, sha256

from .adapter import Adapter
from .hf_compat import patch_transformers
from .kv_int8 import KV_STEP
from .models.exits_config import ExitsConfig
from .models.mtp_config import MtpHeadsConfig
from .packed import unpacked
from .stored import Places, Stored, adapted, stored_in

# Of what transformers has no class for without its target.
OWN_CONFIGS: dict[str, type[PretrainedConfig]] = {config.model_type: config for config in (ExitsConfig, MtpHeadsConfig)}


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
        """`adapters` are merged in their order. Raises PocketdraftError if the folder is no checkpoint."""
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
    def folders(self) -> tuple[Path, ...]:
        """Its own, and the adapters'."""
        return (self.folder, *(adapter.folder for adapter in self.adapters))

    @property
    def name(self) -> str:
        """Of its folders."""
        return " + ".join(path.resolve().name for path in self.folders)

    @property
    def tokenizer_file(self) -> Path:
        return self.folder / "tokenizer.json"

    @property
    def text_config(self) -> PretrainedConfig:
        return self.config.get_text_config()

    def tokens(self) -> Tokens:
        """Those of generation_config.json where there is one, else of config.json. No `bos` where the tokenizer puts
        none before a text: GPT-2's kind does not unless it is told to.
        """
        generation, tokenizer = (_json_of(self.folder / f"{name}_config.json") for name in ("generation", "tokenizer"))
        eos = generation.get("eos_token_id", self.text_config.eos_token_id)
        bos = generation.get("bos_token_id", self.text_config.bos_token_id)
        stop = eos if isinstance(eos, list) else [] if eos is None else [eos]
        begins = tokenizer.get("add_bos_token", tokenizer.get("tokenizer_class") != "GPT2Tokenizer")
        return Tokens(bos=bos if begins else None, stop=tuple(stop))

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

    def load_into(self, module: nn.Module, tied: Mapping[str, str], own_name: Callable[[str], str | None]) -> Places:
        """Finds the tensor of each parameter of `module`, built on the meta device, and loads the small ones.

        The weights of linear layers and embeddings stay on the meta device: the result says where they lie.
        Norms, scalars and orders become float32 (integers stay). `tied` maps a parameter that a checkpoint may
        leave out to the one that it shares. `own_name` gives the parameter, a trunk's without that prefix, that a
        weight of the checkpoint is; None where nothing reads it. Raises PocketdraftError naming the first missing,
        extra, mis-shaped or non-finite weight.
        """
        wanted = {name.removeprefix("trunk."): p for name, p in module.named_parameters()}
        stacked = stacked_weights(module)
        found: dict[str, Stored] = {}
        for full_name, stored in self.tensors.items():
            own = own_name(full_name)
            if own is None or KV_STEP.search(full_name):
                continue
            name, shape = stacked.get(own, (own, None))
            if name not in wanted:
                name = next((mine for mine, theirs in tied.items() if theirs == name), name)
            if name not in wanted:
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
    """Of a target or a drafter. Raises PocketdraftError if the folder is no checkpoint."""
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
    if kind not in OWN_CONFIGS and kind not in CONFIG_MAPPING:
        raise PocketdraftError(f"{config_file} has model_type {kind!r}, unknown to transformers; give another folder.")
    try:
        config = OWN_CONFIGS[kind] if kind in OWN_CONFIGS else CONFIG_MAPPING[kind]
        return config.from_dict(raw)
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


def _json_of(path: Path) -> dict[str, Any]:
    """Nothing where there is no such file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
