"""An independent draft model: a smaller target, with K/V and embeddings of its own, in parts of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from transformers import PretrainedConfig

from pocketdraft.runtime.drafter_specs import DraftModelSpec
from pocketdraft.runtime.graphs import GraphSpec

from ..checkpoint import Checkpoint
from ..families import family_of, make_target, target_types
from ..kv_layout import KVLayout
from ..models.decoder import Target
from ..plan import Plan
from ..step import Operators, Step
from .target import Wants, embedder_steps, target_steps

KIND = "draft_model"
MODEL_TYPES = target_types()


def facts(target: Checkpoint, drafter: Checkpoint) -> Iterator[tuple[str, object, object]]:
    """What must agree: what it is, the target's value, the drafter's."""
    yield "vocabulary size", target.text_config.vocab_size, drafter.text_config.vocab_size


def make(config: PretrainedConfig, target: Target) -> Target:
    return make_target(config)


def tied(model: Target) -> dict[str, str]:
    return model.tied


def own_name(name: str, config: PretrainedConfig) -> str | None:
    return family_of(config).own_name(name, config.get_text_config())


def wants(model: Target) -> Wants:
    return Wants()


def describe(model: Target, plan: Plan, target: Target) -> DraftModelSpec:
    return DraftModelSpec()


def steps(model: Target, plan: Plan, target: Target, target_kv: KVLayout, operators: Operators) -> list[Step]:
    """As the target's, but for `verify`: one token is drafted at a time."""
    layout = KVLayout.of(model.geometry, plan.context, plan.ring_width, back=max(plan.verify))
    layout = replace(layout, owner=f"{KIND}_")
    own = target_steps(model, layout, plan.prefill, (), operators)
    return [Step(_moved(step.spec), step.module) for step in (*own, *embedder_steps(model))]


def _moved(graph: GraphSpec) -> GraphSpec:
    part = KIND if graph.part == "target" else f"{KIND}_{graph.part}"
    changes = {"name": f"model_{graph.name}", "role": f"model_{graph.role}", "part": part}
    return GraphSpec.model_validate(graph.model_dump() | changes)
