"""Which family a target is of: a file of `models`, found by what config.json says that it is."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Protocol, cast

import torch
from transformers import PretrainedConfig

from pocketdraft.runtime.errors import PocketdraftError

from . import models
from .checkpoint import Checkpoint
from .models.decoder import Geometry, Target
from .stored import Places


class Family(Protocol):
    """A file of `models` with a target in it. Every `config` is the text part of a configuration."""

    MODEL_TYPES: tuple[str, ...]

    def make_target(self, config: PretrainedConfig) -> Target:
        """Without weights. Raises PocketdraftError for what the graphs do not cover."""

    def own_name(self, name: str, config: PretrainedConfig) -> str | None:
        """The parameter that a checkpoint's weight is; None where nothing reads it."""


def family_of(config: PretrainedConfig) -> Family:
    """Of a target's whole configuration. Raises PocketdraftError for any other."""
    found = [family for family in _families() if config.model_type in family.MODEL_TYPES]
    if not found:
        known = ", ".join(target_types())
        raise PocketdraftError(
            f"A {config.model_type} was given as the target, pocketdraft exports {known}; "
            "give another, or the folders of --target and --drafter the other way round."
        )
    return found[0]


def target_types() -> tuple[str, ...]:
    return tuple(kind for family in _families() for kind in family.MODEL_TYPES)


def make_target(config: PretrainedConfig) -> Target:
    """Without weights, of a target's whole configuration."""
    return family_of(config).make_target(config.get_text_config())


def geometry_of(config: PretrainedConfig) -> Geometry:
    with torch.device("meta"):
        return make_target(config).geometry


def load_target(checkpoint: Checkpoint) -> tuple[Target, Places]:
    """The target with its large weights on the meta device, and where they lie."""
    family, config = family_of(checkpoint.config), checkpoint.text_config
    with torch.device("meta"):
        target = family.make_target(config)
    stored = checkpoint.load_into(target, target.tied, lambda name: family.own_name(name, config))
    return target.eval(), stored


def _families() -> Iterator[Family]:
    for module in pkgutil.iter_modules(models.__path__):
        family = importlib.import_module(f"{models.__name__}.{module.name}")
        if hasattr(family, "MODEL_TYPES"):
            yield cast(Family, family)
