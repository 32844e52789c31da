"""Self-speculation (LayerSkip, arXiv 2404.16710): the target's first layers draft, the others verify.

The graphs split the target where the drafting ends, so that no layer runs twice for a token: `exit_draft` runs the
first layers and writes their K/V, `exit_verify_K` goes on from the states that it gave.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn
from transformers import PretrainedConfig

from pocketdraft.runtime.drafter_specs import EarlyExitSpec
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.graphs import GraphSpec

from ..checkpoint import Checkpoint
from ..kv_int8 import open_kv
from ..kv_layout import KVLayout
from ..models.decoder import Target
from ..models.exits import Exits, check_exits
from ..models.exits_config import ExitsConfig
from ..plan import Plan
from ..step import Operators, Step, spec
from .target import Wants, capped, target_inputs

KIND = "early_exit"
MODEL_TYPES = ("pocketdraft_exits",)
STATES = "exit_states"


class _Layers(nn.Module):
    """Some of the target's layers: the first give their last state, those after them logits too."""

    def __init__(
        self, target: Target, layout: KVLayout, layers: range, written: set[int], operators: Operators
    ) -> None:
        super().__init__()
        self.trunk = target.trunk
        self.written = tuple(tensor.name for tensor in layout.tensors(written))
        self.first, self.end = layers.start, layers.stop
        self.lm_head = target.lm_head if self.end == len(target.geometry.layers) else None
        self.softcap, self.kv_steps, self.operators = target.geometry.softcap, layout.steps, operators

    def forward(
        self,
        input_pos: Tensor,
        mask: Tensor,
        embeddings: Tensor | None = None,
        per_layer_embeddings: Tensor | None = None,
        exit_states: Tensor | None = None,
        **kv_cache: Tensor,
    ) -> dict[str, Tensor]:
        start = input_pos[:1]
        last = start + (input_pos.shape[0] - 1)
        kv = open_kv(self.kv_steps, kv_cache, start, last, mask.shape[-1], self.operators)
        embeddings = exit_states if embeddings is None else embeddings
        assert embeddings is not None
        layers = range(self.first, self.end)
        state = self.trunk.states(embeddings, per_layer_embeddings, input_pos, mask, kv, layers, exit_states)[-1]
        written = {name: kv.tensors[name] for name in self.written}
        if self.lm_head is None:
            return {STATES: state, **written}
        hidden = self.trunk.norm(state)
        return {"logits": capped(self.lm_head(hidden), self.softcap), "activations": hidden, **written}


class _ExitHead(nn.Module):
    """What an exit, the target's norm and its head make of a state after the first layers."""

    def __init__(self, target: Target, exits: Exits | None, layers: int) -> None:
        super().__init__()
        self.exit = exits.after(layers) if exits else nn.Identity()
        self.norm, self.lm_head, self.softcap = target.trunk.norm, target.lm_head, target.geometry.softcap

    def forward(self, exit_states: Tensor) -> dict[str, Tensor]:
        return {"logits": capped(self.lm_head(self.norm(self.exit(exit_states))), self.softcap)}


def facts(target: Checkpoint, exits: Checkpoint) -> Iterator[tuple[str, object, object]]:
    """What must agree: what it is, the target's value, the exits'."""
    yield "hidden size", target.text_config.hidden_size, exits.config.hidden_size


def make(config: ExitsConfig, target: Target) -> Exits:
    check_exits(config, target.geometry)
    return Exits(config)


def own_name(name: str, config: PretrainedConfig) -> str | None:
    return name


def tied(model: Exits) -> dict[str, str]:
    return {}


def wants(model: Exits | None) -> Wants:
    return Wants()


def describe(model: Exits | None, plan: Plan, target: Target) -> EarlyExitSpec:
    return EarlyExitSpec(layers=_cut(model, plan, target))


def _cut(model: Exits | None, plan: Plan, target: Target) -> int:
    """How many layers draft: as the plan says, else those before K/V are shared, else up to the middle exit.

    Raises PocketdraftError if that leaves none to verify, or none to draft.
    """
    count = len(target.geometry.layers)
    own = sum(layer.owns_kv for layer in target.geometry.layers)
    cuts = model.cuts if model else ()
    cut = plan.early_exit or (own if own in cuts else cuts[len(cuts) // 2])
    if not 0 < cut < count:
        raise PocketdraftError(
            f"--early-exit is {cut}, the target has {count} layers; give a number from 1 to {count - 1}."
        )
    return cut


def steps(model: Exits | None, plan: Plan, target: Target, target_kv: KVLayout, operators: Operators) -> list[Step]:
    """`model` None is a target that was trained to be left early: its own norm and head read any layer's state."""
    g, layout, first = target.geometry, target_kv, _cut(model, plan, target)
    count = len(g.layers)

    def step(name: str, role: Literal["exit_draft", "exit_verify"], width: int, layers: range) -> Step:
        read = {g.layers[index].reads for index in layers}
        written = {index for index in layers if g.layers[index].owns_kv}
        inputs = list(target_inputs(target, layout, width))
        outputs = [spec(STATES, "float32", 1, width, g.hidden)]
        if role == "exit_verify":
            # Per-layer inputs are made of the embeddings too; else the states are all that a layer after them takes.
            inputs = [one for one in inputs if g.per_layer or one.name != "embeddings"]
            inputs, outputs = (
                [*inputs, *outputs],
                [spec("logits", "float32", 1, width, g.vocab), spec("activations", "float32", 1, width, g.hidden)],
            )
        graph = GraphSpec(
            name=name,
            role=role,
            part="target",
            width=width,
            inputs=(*inputs, *layout.tensors(read), *operators.inputs),
            outputs=(*outputs, *layout.tensors(written)),
        )
        return Step(graph, _Layers(target, layout, layers, written, operators).eval())

    head = GraphSpec(
        name="exit_head",
        role="exit_head",
        part="target",
        width=1,
        inputs=(spec(STATES, "float32", 1, 1, g.hidden),),
        outputs=(spec("logits", "float32", 1, 1, g.vocab),),
    )
    return [
        step("exit_draft", "exit_draft", 1, range(first)),
        Step(head, _ExitHead(target, model, first).eval()),
        *(step(f"exit_verify_{width}", "exit_verify", width, range(first, count)) for width in (1, *plan.verify)),
    ]
