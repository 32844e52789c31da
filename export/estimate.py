"""What an export will take and give, from configurations alone: no weight is read.

The figures of memory and time come from a model of the streaming export, with constants measured on one machine
(benchmarks/RESULTS.md has the check against whole runs). Sizes are exact up to padding and graph structure.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from pocketdraft.quantize.recipe import Rule
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.graphs import KVSteps

from . import sizes
from .checkpoint import read_config
from .drafting import kind_of
from .families import make_target
from .kv_layout import KVLayout
from .pipeline import Models, backend_of, check_rules, kv_steps_of, make_steps
from .plan import Plan
from .step import Plain, Step, all_weights
from .stored import CHUNK_BYTES
from .tiny import or_embedded

CONTEXTS = (4096, 8192, 16384, 32768)
PHONES_GB = (4, 6, 8, 12, 16, 24)
GB = 1e9
FLATBUFFER_LIMIT = TENSOR_LIMIT = 2**31
FILE_LIMIT = 2**32

# Two cores of an AMD EPYC, litert-torch 0.10.0: the runs of benchmarks/RESULTS.md, "Real sizes".
BASE_BYTES = 0.95 * GB  # torch, transformers and the converter, idle
BYTES_PER_LAYER_GRAPH = 3.5e6  # of a layer in one target graph while it is converted
SECONDS_PER_LAYER_GRAPH = 1.2
SECONDS_PER_PARAMETER = 1 / 35e6  # read, rounded and written
SECONDS_PER_BYTE = 1 / 400e6  # of the bundle: filled, packed, hashed
FLOAT_COPIES = 2.5  # of the weights, in float32, that backends without streaming hold at their peak


@dataclass(frozen=True)
class PartEstimate:
    """A part of the bundle; `bytes` of its weights and their scales."""

    name: str
    graphs: tuple[str, ...]
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Limit:
    """Something that a phone or a file format bounds, both in bytes. `mend` says what to do beyond it."""

    name: str
    needed: int
    bound: int
    mend: str

    @property
    def kept(self) -> bool:
        return self.needed <= self.bound


@dataclass(frozen=True)
class Estimate:
    """`kv_bytes` by context; `peak_bytes`, `disk_bytes` and `seconds` are the export's; `phone_bytes` the app's."""

    parts: tuple[PartEstimate, ...]
    kv_bytes: dict[int, int]
    context: int
    peak_bytes: int
    disk_bytes: int
    seconds: float
    phone_bytes: int
    limits: tuple[Limit, ...]

    @property
    def bundle_bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def smallest_phone_gb(self) -> int | None:
        """The least memory of which an app may well have half, None where no phone has enough."""
        return next((size for size in PHONES_GB if self.phone_bytes <= size * GB / 2), None)

    def to_json(self) -> dict[str, Any]:
        found = asdict(self) | {"bundle_bytes": self.bundle_bytes, "smallest_phone_gb": self.smallest_phone_gb}
        found["limits"] = [asdict(limit) | {"kept": limit.kept} for limit in self.limits]
        return found


def blank_models(target: PretrainedConfig, *drafters: PretrainedConfig) -> Models:
    """All parameters on the meta device."""
    with torch.device("meta"):
        model = make_target(target)
        kinds = [(kind_of(config), config) for config in drafters]
        made = {kind.KIND: kind.make(config, model) for kind, config in kinds}
    return Models(model, made, {}, {index: KVSteps(1.0, 1.0) for index in range(len(model.geometry.layers))})


def estimate(plan: Plan, target: PretrainedConfig, *drafters: PretrainedConfig) -> Estimate:
    """Raises PocketdraftError for what no export could do (a rule that does not fit a weight, an odd geometry)."""
    models = blank_models(target, *drafters)
    check_rules(plan, models)
    steps, _ = make_steps(plan, models, Plain())
    parts = _parts(plan, steps)
    geometry, kv_steps = models.target.geometry, kv_steps_of(plan, models)
    kv = {
        context: _kv_bytes(KVLayout.of(geometry, context, plan.ring_width, kv_steps, max(plan.verify)))
        for context in sorted({plan.context, *CONTEXTS})
    }
    bundle = sum(part.bytes for part in parts)
    layers = len(geometry.layers) * sum(step.spec.part == "target" for step in steps)
    streams = backend_of(plan).STREAMS
    parameters = sum(part.parameters for part in parts)
    peak = BASE_BYTES + layers * BYTES_PER_LAYER_GRAPH + 4 * CHUNK_BYTES + 4 * _scale_bytes(plan, steps)
    if not streams:
        peak = BASE_BYTES + FLOAT_COPIES * 4 * parameters
    run = sum(part.bytes for part in parts if "embedder" not in part.name)
    return Estimate(
        parts=parts,
        kv_bytes=kv,
        context=plan.context,
        peak_bytes=int(peak),
        disk_bytes=int(3 * bundle if streams else 2 * bundle),
        seconds=parameters * SECONDS_PER_PARAMETER + layers * SECONDS_PER_LAYER_GRAPH + bundle * SECONDS_PER_BYTE,
        phone_bytes=run + kv[plan.context],
        limits=_limits(plan, steps, bundle),
    )


def check_memory(plan: Plan, found: Estimate) -> None:
    """Raises PocketdraftError if the export is expected to need more than `plan.max_memory`, or than there is."""
    allowed = physical_memory() if plan.max_memory is None else plan.max_memory
    if found.peak_bytes > allowed:
        said = "This machine has" if plan.max_memory is None else "--max-memory is"
        less = "drop graphs with --prefill and --drafts"
        if not backend_of(plan).STREAMS:
            less = "give --backend litert, which streams weights"
        raise PocketdraftError(
            f"{said} {allowed / GB:.1f} GB, the {plan.backend} export needs about {found.peak_bytes / GB:.1f} GB; "
            f"allow that much, or {less}."
        )


def physical_memory() -> int:
    """Of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_plans(plans: Sequence[Plan]) -> None:
    """As `check_memory`, for what is about to be exported."""
    for plan in plans:
        check_memory(plan, estimate(plan, *map(read_config, (plan.target, *plan.drafters))))


def configs_of(size: str | None, target: Path | None, drafters: Sequence[Path]) -> tuple[PretrainedConfig, ...]:
    """The target's, then its drafters': of one of Google's sizes, or of folders. Raises PocketdraftError."""
    if size is not None and (target or drafters):
        raise PocketdraftError(f"Both --size {size} and a folder were given; give one or the other.")
    if size is not None:
        return sizes.configs(size)
    folders = or_embedded(target, drafters)
    return tuple(map(read_config, (folders[0], *folders[1])))


def _parts(plan: Plan, steps: list[Step]) -> tuple[PartEstimate, ...]:
    names = list(dict.fromkeys(step.spec.part for step in steps))
    found = []
    for name in names:
        own = [step for step in steps if step.spec.part == name]
        weights = all_weights(own)
        found.append(
            PartEstimate(
                name=name,
                graphs=tuple(step.spec.name for step in own),
                parameters=sum(module.weight.numel() for module in weights.values()),
                bytes=sum(_bytes(module.weight, plan.recipes.rule_for(weight)) for weight, module in weights.items()),
            )
        )
    return tuple(found)


def _bytes(weight: torch.Tensor, rule: Rule) -> int:
    """As the rule says, and a row's zero point, which the flatbuffer has too."""
    rows, columns = weight.shape
    zero_points = 0 if rule.dtype == "float32" or rule.block else 8 * rows
    return rule.size_bytes(rows, columns) + zero_points


def _scale_bytes(plan: Plan, steps: list[Step]) -> int:
    """Of the rows' scales, which lie in the flatbuffer proper and in memory while it is written."""
    rules = {name: plan.recipes.rule_for(name) for name in all_weights(steps)}
    return sum(
        12 * module.weight.shape[0]
        for name, module in all_weights(steps).items()
        if rules[name].dtype != "float32" and not rules[name].block
    )


def _kv_bytes(layout: KVLayout) -> int:
    """Of int8 K/V, the float32 copies that a full and a sliding layer work on beside them."""
    sizes = {tensor.name: torch.Size(tensor.shape).numel() for tensor in layout.tensors()}
    if not layout.steps:
        return 4 * sum(sizes.values())
    last = {layer.kind: sizes[f"kv_cache_k_{layer.layer}"] for layer in layout.layers}
    return sum(sizes.values()) + 8 * sum(last.values())


def _limits(plan: Plan, steps: list[Step], bundle: int) -> tuple[Limit, ...]:
    biggest = max(_bytes(module.weight, plan.recipes.rule_for(name)) for name, module in all_weights(steps).items())
    return (
        Limit("a flatbuffer less its weights", _scale_bytes(plan, steps), FLATBUFFER_LIMIT, "use rules with blocks."),
        Limit("one weight", biggest, TENSOR_LIMIT, "give the embedder fewer bits with --embedder-recipe."),
        Limit("one file", bundle, FILE_LIMIT, "use fewer bits; some file systems and 32-bit processes take no more."),
    )
