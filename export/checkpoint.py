"""Reads a Hugging Face checkpoint as a stream of tensors, and says which one is missing, extra or mis-shaped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import Gemma4AssistantConfig, Gemma4Config, Gemma4TextConfig, PretrainedConfig

from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import Tokens

from .adapter import EMBEDDING, HEAD, Adapter, merged, plain_name, untie
from .hf_compat import patch_transformers

CONFIGS: dict[str, type[PretrainedConfig]] = {
    "gemma4": Gemma4Config,
    "gemma4_text": Gemma4TextConfig,
    "gemma4_assistant": Gemma4AssistantConfig,
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
    adapters: tuple[Adapter, ...] = ()

    @staticmethod
    def open(folder: Path, adapters: Sequence[Path] = ()) -> Checkpoint:
        """`adapters` are merged in their order. Raises PocketdraftError if the folder is no Gemma 4 checkpoint."""
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
            config = CONFIGS[kind].from_dict(raw)
        except Exception as error:  # transformers raises several kinds for a wrong value
            raise PocketdraftError(f"{config_file} is not a valid {kind} configuration: {_one_line(error)}.") from error
        files = tuple(sorted(folder.glob("*.safetensors")))
        if not files:
            raise PocketdraftError(f"{folder} has no *.safetensors file; convert the checkpoint to safetensors first.")
        checkpoint = Checkpoint(folder, config, files, tuple(Adapter.open(adapter) for adapter in adapters))
        for adapter in checkpoint.adapters:
            adapter.check_against(folder, checkpoint.shapes())
        return checkpoint

    @property
    def name(self) -> str:
        """Of the folder, and of the adapters' folders."""
        return " + ".join(path.resolve().name for path in (self.folder, *(a.folder for a in self.adapters)))

    @property
    def tokenizer_file(self) -> Path:
        return self.folder / "tokenizer.json"

    def require(self, kind: str) -> None:
        """Refuses a target where a drafter is wanted, and the reverse."""
        actual = "drafter" if isinstance(self.config, Gemma4AssistantConfig) else "target"
        if actual != kind:
            raise PocketdraftError(
                f"{self.folder} holds a {actual} ({self.config.model_type}), a {kind} was asked for; "
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
        path = self.folder / "chat_template.jinja"
        return path.read_text() if path.is_file() else None

    def sha256(self) -> str:
        """Over config and weights, in the order of file names, then over the adapters."""
        digest = hashlib.sha256()
        for path in (self.folder / "config.json", *self.files):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        for adapter in self.adapters:
            digest.update(bytes.fromhex(adapter.sha256()))
        return digest.hexdigest()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By name, from the files' headers. Raises PocketdraftError for a damaged file."""
        found: dict[str, tuple[int, ...]] = {}
        for path in self.files:
            with _opened(path) as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return found

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor, one at a time, memory-mapped, adapters merged. Raises PocketdraftError for a damaged one."""
        untied = bool(self.adapters) and untie(self.adapters, list(self.shapes()))
        for path in self.files:
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    weight = file.get_tensor(name)
                    yield name, merged(self.adapters, name, weight)
                    if untied and plain_name(name) == EMBEDDING:
                        yield HEAD, merged(self.adapters, HEAD, weight)

    def adapted(self) -> Iterator[tuple[str, Tensor]]:
        """As `tensors`, but only what an adapter changes."""
        for name, weight in self.tensors() if self.adapters else ():
            if any(adapter.touches(name) for adapter in self.adapters):
                yield name, weight

    def load_into(self, module: nn.Module, tied: dict[str, str]) -> None:
        """Fills `module`, built on the meta device, with float32 weights.

        `tied` maps a parameter that a checkpoint may leave out to the one that it shares.
        Raises PocketdraftError naming the first missing, extra, mis-shaped or non-finite weight.
        """
        wanted = {name.removeprefix("trunk."): p for name, p in module.named_parameters()}
        found: set[str] = set()
        for full_name, tensor in self.tensors():
            name = PREFIX.sub("", full_name)
            if name not in wanted:
                name = next((mine for mine, theirs in tied.items() if theirs == name), name)
            if name not in wanted:
                if OTHER_MODALITIES.match(full_name) or self._unused_kv(name):
                    continue
                raise PocketdraftError(
                    f"{self.folder} has a weight {full_name} that {self.config.model_type} does not know; "
                    "check that config.json belongs to these weights."
                )
            self._check(full_name, tensor, wanted[name])
            if tensor.is_floating_point():
                tensor = tensor.to(torch.float32)
            _assign(module, name, tensor)
            found.add(name)
        for mine, theirs in tied.items():
            if mine not in found and theirs in found:
                _assign(module, mine, _get(module, theirs))
                found.add(mine)
        missing = sorted(set(wanted) - found)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise PocketdraftError(
                f"{self.folder} lacks the weight {missing[0]}{more}; the checkpoint is incomplete, download it again."
            )

    def _check(self, name: str, tensor: Tensor, wanted: Tensor) -> None:
        if tensor.shape != wanted.shape:
            raise PocketdraftError(
                f"{self.folder}: weight {name} has shape {list(tensor.shape)}, config.json asks for "
                f"{list(wanted.shape)}; check that config.json belongs to these weights."
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise PocketdraftError(
                f"{self.folder}: weight {name} holds NaN or infinity; the training run or the download went wrong."
            )

    def _unused_kv(self, name: str) -> bool:
        """KV-shared layers have K/V weights in some checkpoints; nothing reads them."""
        match = KV_WEIGHT.match(name)
        text = self.text_config
        first_shared = text.num_hidden_layers - (text.num_kv_shared_layers or 0)
        return bool(match) and int(match.group(1)) >= first_shared  # type: ignore[union-attr]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise PocketdraftError(f"{path} is damaged ({_one_line(error)}); download it again.") from error


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


def _get(module: nn.Module, name: str) -> Tensor:
    owner, leaf = _owner(module, name)
    return getattr(owner, leaf)  # type: ignore[no-any-return]


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner, leaf = _owner(module, name)
    setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
