"""The bundle's format: what `bundle.json` says, how it is read, verified and refused.

A bundle is a folder:

    bundle.json          this manifest
    model.litertlm       the graphs (LiteRT), or
    model.pte            the graphs (ExecuTorch), or
    FAMILY.onnx          the graphs (ONNX), with PART.bin for the weights
    tokenizer.json       Hugging Face tokenizer
    chat_template.jinja  messages to a prompt, where the checkpoint has one
    chat_turns.json      the same in plain strings, for the phone, where they can say it
    quantization.json    error of each quantized weight, worst first
    delegation.json      operators outside of XNNPACK by method (ExecuTorch)

The reader owns the format: `export` imports this module and fills it in.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from .calm import Calibration
from .drafter_specs import DrafterSpecs, Frozen
from .errors import PocketdraftError, first_fault
from .files import write_whole
from .graphs import GraphSpec, KVLayer, TensorSpec, keep_states

FORMAT_VERSION = 2
Backend = Literal["litert", "executorch", "onnx"]
Device = Literal["cpu", "gpu"]  # the one that the graphs are written for
MANIFEST_NAME = "bundle.json"
TOKENIZER_NAME = "tokenizer.json"
CHAT_TEMPLATE_NAME = "chat_template.jinja"
ERRORS_NAME = "quantization.json"
DELEGATION_NAME = "delegation.json"


class Part(Frozen):
    """Where a part's graphs lie: a byte range of one of the bundle's files."""

    file: str
    offset: NonNegativeInt
    size: PositiveInt


class Tokens(Frozen):
    """Token ids that the loop needs. `stop` ends a generation; `bos` is put before every prompt."""

    bos: int | None
    stop: tuple[int, ...]


class FileEntry(Frozen):
    sha256: str
    size: NonNegativeInt


class Source(Frozen):
    """A checkpoint behind the bundle: names of the folder and its adapters, sha256 over config and weights."""

    name: str
    sha256: str


class Sources(Frozen):
    """`drafters` by kind."""

    target: Source
    drafters: dict[str, Source]

    @property
    def names(self) -> str:
        """For people."""
        return " and ".join(source.name for source in (self.target, *self.drafters.values()))


class TunedSchedule(Frozen):
    """When to stop drafting: see `schedule.Schedule`. `shares` [11] by tenth of confidence, `least` by drafts made."""

    shares: tuple[float, ...]
    least: tuple[float, ...]


class Tuned(Frozen):
    """What `pocketdraft tune` chose for a device: what the bundle starts with unless told otherwise.

    `drafter` is a drafter's name, "none" being off; `drafts` the most of a round, 0 being off; with a `schedule` the
    drafter may stop before. `gain` is the expected speed over plain decoding's, and `gains` by domain. `device` is
    whose profile it was, `profile_sha256` of that profile's bytes, "" where it was taken on the spot.
    """

    drafter: str
    drafts: NonNegativeInt
    schedule: TunedSchedule | None = None
    gain: float
    gains: dict[str, float]
    reason: str
    device: str
    profile_sha256: str = ""


class Manifest(Frozen):
    """Everything a runtime must know to run the bundle. `files` covers every byte but this file's own.

    `takes_back` is the most tokens that recurrent layers can take back, of the target or a draft model; None where
    none is recurrent. `calm` is what `pocketdraft calm` certified: lossy, and nothing that a runtime does unasked.
    """

    format_version: int
    backend: Backend
    device: Device = "cpu"
    context_length: int
    vocab_size: int
    kv: tuple[KVLayer, ...]
    graphs: tuple[GraphSpec, ...]
    parts: dict[str, Part]
    drafters: DrafterSpecs
    tokens: Tokens
    recipe: dict[str, object]
    source: Sources
    versions: dict[str, str]
    files: dict[str, FileEntry]
    takes_back: PositiveInt | None = None
    tuned: Tuned | None = None
    calm: Calibration | None = None

    def graphs_of(self, role: str) -> list[GraphSpec]:
        """The graphs with this role, narrowest first."""
        return sorted((g for g in self.graphs if g.role == role), key=lambda g: g.width)

    @property
    def kv_tensors(self) -> dict[str, tuple[TensorSpec, GraphSpec]]:
        """All K/V of a sequence by name, a drafter's own among them, each with a graph that takes it."""
        return {tensor.name: (tensor, graph) for graph in self.graphs for tensor in graph.inputs if tensor.is_kv}

    @property
    def target_kv(self) -> tuple[TensorSpec, ...]:
        """The target's own K/V."""
        return tuple(tensor for tensor in self.graphs_of("decode")[0].inputs if tensor.is_kv)

    @property
    def target_memory(self) -> tuple[TensorSpec, ...]:
        """What its recurrent layers have in the place of K/V."""
        return tuple(tensor for tensor in self.target_kv if not tensor.has_slots)

    def part_of(self, kind: str) -> Part | None:
        """Where this kind of drafter's own graphs lie; None for one that has none but the target's."""
        return self.parts.get("drafter" if kind == "mtp" else kind)

    @property
    def recipe_name(self) -> str:
        """One name, or three with slashes between where target, drafter and embedders differ."""
        names = [str(recipe["name"]) for recipe in self.recipe.values()]  # type: ignore[index]
        return names[0] if len(set(names)) == 1 else "/".join(names)

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest itself."""
        return sum(entry.size for entry in self.files.values())

    @property
    def kv_bytes(self) -> int:
        """Of one sequence's K/V."""
        return self.kv_bytes_of(self.context_length)

    def kv_bytes_of(self, filled: int) -> int:
        """Of the K/V of so many positions; a ring holds no more than it has slots, a recurrent layer always as much."""
        memory = sum(4 * math.prod(tensor.shape) for tensor in self.target_memory)
        return memory + sum(
            2 * layer.heads * layer.head_dim * min(filled, layer.slots or filled) * (1 if layer.steps else 4)
            for layer in self.kv
        )

    def dump(self) -> str:
        return self.model_dump_json(indent=1) + "\n"


def recipe_part(part: str) -> str:
    """Under which name of `Manifest.recipe` a part's is."""
    return part if part == "target" else "embedder" if part.endswith("embedder") else "drafter"


def read(folder: Path) -> Manifest:
    """Reads `folder/bundle.json` without touching the other files. Raises PocketdraftError."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise PocketdraftError(f"{folder} is no bundle: it has no {MANIFEST_NAME}; make one with `pocketdraft export`.")
    try:
        version = _Version.model_validate_json(path.read_bytes()).format_version
        if version < FORMAT_VERSION:
            raise PocketdraftError(
                f"{path} has format version {version}, this pocketdraft reads {FORMAT_VERSION}; export it again."
            )
        if version > FORMAT_VERSION:
            raise PocketdraftError(
                f"{path} has format version {version}, this pocketdraft reads {FORMAT_VERSION}: "
                "upgrade pocketdraft or export again with this one."
            )
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise PocketdraftError(f"{path} is damaged at {first_fault(error)}; export the bundle again.") from error
    for name in manifest.files:
        _inside(folder, name)
    _check_consistency(path, manifest)
    return manifest


def change(folder: Path, fields: Mapping[str, object]) -> Manifest:
    """Writes the bundle's manifest with these values, exchanged as a whole. Raises PocketdraftError."""
    manifest = read(folder).model_copy(update=dict(fields))
    write_whole(folder / MANIFEST_NAME, manifest.dump())
    return manifest


def open_bundle(folder: Path) -> Manifest:
    """Reads the manifest and checks size and sha256 of each file that it lists. Raises PocketdraftError."""
    manifest = read(folder)
    for name, entry in manifest.files.items():
        path = _inside(folder, name)
        if not path.is_file():
            raise PocketdraftError(f"{path} is missing, bundle.json lists it; copy the bundle again.")
        if path.stat().st_size != entry.size or sha256(path) != entry.sha256:
            raise PocketdraftError(f"{path} is not the file that was exported (size or sha256 differs); copy it again.")
    return manifest


def _check_consistency(path: Path, manifest: Manifest) -> None:
    """What a runtime relies on without looking: listed files, parts within them, the roles of every bundle."""
    if TOKENIZER_NAME not in manifest.files:
        raise PocketdraftError(f"{path} does not list {TOKENIZER_NAME}; export the bundle again.")
    for name, part in manifest.parts.items():
        if part.file not in manifest.files:
            raise PocketdraftError(f"{path} takes a graph from {part.file}, which it does not list; export again.")
        end, size = part.offset + part.size, manifest.files[part.file].size
        if end > size:
            raise PocketdraftError(
                f"{path} places {name} up to byte {end} of {part.file}, which has {size}; export again."
            )
    specs = [getattr(manifest.drafters, kind) for kind in manifest.drafters.kinds]
    for role in ("embed", "prefill", "decode", "verify", *(role for spec in specs for role in spec.needed)):
        if not manifest.graphs_of(role):
            raise PocketdraftError(f"{path} has no {role} graph; export the bundle again.")
    if keep_states(manifest.graphs) and manifest.takes_back is None:
        raise PocketdraftError(f"{path} has recurrent layers and no takes_back; export the bundle again.")
    missing = next((graph for graph in manifest.graphs if graph.part not in manifest.parts), None)
    if missing:
        raise PocketdraftError(
            f"{path} has a graph {missing.name} in a part {missing.part!r} that it lacks; export again."
        )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _inside(folder: Path, name: str) -> Path:
    parts = PurePosixPath(name)
    if "\0" in name:
        raise PocketdraftError(f"{folder / MANIFEST_NAME} names {name!r}, which is no file name; do not trust it.")
    path = folder / name
    if parts.is_absolute() or ".." in parts.parts or not path.resolve().is_relative_to(folder.resolve()):
        raise PocketdraftError(f"{folder / MANIFEST_NAME} names {name!r}, which leaves the bundle; do not trust it.")
    return path


class _Version(BaseModel):
    model_config = ConfigDict(extra="ignore")
    format_version: int
