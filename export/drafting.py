"""Which drafters a bundle gets: a file of `steps` for each kind, found by what the checkpoint says that it is."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import nn
from transformers import PretrainedConfig

from pocketdraft.runtime.drafter_specs import DrafterSpecs, Spec
from pocketdraft.runtime.errors import PocketdraftError

from . import steps as kinds
from .checkpoint import Checkpoint
from .kv_layout import KVLayout
from .models.decoder import Target
from .plan import Plan
from .step import Operators, Step
from .steps.target import Wants, embedder_steps, target_steps
from .stored import Places


class Kind(Protocol):
    """A file of `steps` with drafters in it. `model` is what its `make` gives."""

    KIND: str
    MODEL_TYPES: tuple[str, ...]

    def facts(self, target: Checkpoint, drafter: Checkpoint) -> Iterator[tuple[str, object, object]]:
        """What must agree: what it is, the target's value, the drafter's."""

    def make(self, config: PretrainedConfig, target: Target) -> nn.Module:
        """Without weights."""

    def own_name(self, name: str, config: PretrainedConfig) -> str | None:
        """The parameter that a checkpoint's weight is; None where nothing reads it."""

    def tied(self, model: Any) -> dict[str, str]:
        """Parameters that a checkpoint may leave out, by those that they share."""

    def wants(self, model: Any) -> Wants: ...

    def steps(
        self, model: Any, plan: Plan, target: Target, target_kv: KVLayout, operators: Operators
    ) -> list[Step]: ...

    def describe(self, model: Any, plan: Plan, target: Target) -> Spec: ...


def kind_of(config: PretrainedConfig) -> Kind:
    """Raises PocketdraftError for a configuration that no file takes."""
    for module in pkgutil.iter_modules(kinds.__path__):
        kind = importlib.import_module(f"{kinds.__name__}.{module.name}")
        if config.model_type in getattr(kind, "MODEL_TYPES", ()):
            return cast(Kind, kind)
    raise PocketdraftError(f"A {config.model_type} was given as a drafter, which it is not; give --drafter another.")


def by_kind(drafters: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """Raises PocketdraftError for two of one kind."""
    found: dict[str, Checkpoint] = {}
    for drafter in drafters:
        kind = kind_of(drafter.config).KIND
        if kind in found:
            raise PocketdraftError(
                f"{found[kind].folder} and {drafter.folder} are both {kind} drafters, a bundle holds one of a kind; "
                "leave one --drafter out."
            )
        found[kind] = drafter
    return found


def load_drafter(drafter: Checkpoint, target: Target) -> tuple[nn.Module, Places]:
    """With its large weights on the meta device, and where they lie."""
    kind = kind_of(drafter.config)
    with torch.device("meta"):
        model = kind.make(drafter.config, target)
    stored = drafter.load_into(model, kind.tied(model), lambda name: kind.own_name(name, drafter.config))
    return model.eval(), stored


def all_steps(
    plan: Plan, target: Target, drafters: Mapping[str, nn.Module], layout: KVLayout, operators: Operators
) -> list[Step]:
    """The graphs of the target, of its drafters and of its embedders, part by part."""
    wants, models = Wants(), _with_exits(plan, drafters)
    for kind, model in models.items():
        wants |= _file(kind).wants(model)
    steps = target_steps(target, layout, plan.prefill, plan.verify, operators, wants)
    for kind, model in models.items():
        steps += _file(kind).steps(model, plan, target, layout, operators)
    steps += embedder_steps(target)
    parts = list(dict.fromkeys(step.spec.part for step in steps))  # some drafters' graphs lie in the target's part
    return sorted(steps, key=lambda step: parts.index(step.spec.part))


def describe(plan: Plan, target: Target, drafters: Mapping[str, nn.Module]) -> DrafterSpecs:
    specs = {kind: _file(kind).describe(model, plan, target) for kind, model in _with_exits(plan, drafters).items()}
    return DrafterSpecs.model_validate(specs)


def _with_exits(plan: Plan, drafters: Mapping[str, nn.Module]) -> Mapping[str, nn.Module | None]:
    """A target may be left early without a checkpoint for it."""
    return drafters if not plan.early_exit else {"early_exit": None, **drafters}


def _file(kind: str) -> Kind:
    return cast(Kind, importlib.import_module(f"{kinds.__name__}.{kind}"))
