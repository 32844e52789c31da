"""Self-speculation (LayerSkip, arXiv 2404.16710): the target's first layers draft, the others verify.

The graphs split the target where the drafting ends, so that no layer runs twice for a token: `exit_draft` runs the
first layers and writes their K/V, `exit_verify_K` goes on from the states that it gave. A token may also leave there
for good (CALM, arXiv 2207.07061): `exit_fill` then makes the other layers' K/V of its state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from transformers import PretrainedConfig

from pocketdraft.runtime.drafter_specs import EarlyExitSpec
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.graphs import DrafterRole, GraphSpec, TensorSpec

from ..checkpoint import Checkpoint
from ..kv_int8 import open_kv
from ..kv_layout import KVLayout
from ..models.decoder import Target
from ..models.exits import Exit, Exits, check_exits
from ..models.exits_config import ExitsConfig
from ..models.layers import capped
from ..plan import Plan
from ..step import Operators, Step, spec
from .target import Wants, target_inputs

KIND = "early_exit"
MODEL_TYPES = ("pocketdraft_exits",)
STATES = "exit_states"


class _Layers(nn.Module):
    """Some of the target's layers. The first give their last state, and a trained exit's score of it; the others give
    logits."""

    def __init__(
        self, target: Target, layout: KVLayout, layers: range, operators: Operators, own_exit: Exit | None = None
    ) -> None:
        super().__init__()
        self.trunk, self.exit = target.trunk, own_exit
        self.written = tuple(tensor.name for tensor in layout.tensors(_owners(target, layers)))
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
        made = {name: kv.tensors[name] for name in self.written}
        if self.lm_head is None:
            if self.exit is not None:
                made["score"] = self.exit.score(state)
            return {STATES: state, **made}
        hidden = self.trunk.norm(state)
        return {"logits": capped(self.lm_head(hidden), self.softcap), "activations": hidden, **made}


class _Fill(nn.Module):
    """K/V of layers that a token skips, all of the one state that it leaves with."""

    def __init__(self, target: Target, layout: KVLayout, layers: set[int], operators: Operators) -> None:
        super().__init__()
        self.trunk, self.layers = target.trunk, tuple(sorted(layers))
        self.context, self.kv_steps, self.operators = layout.context, layout.steps, operators

    def forward(self, exit_states: Tensor, input_pos: Tensor, **kv_cache: Tensor) -> dict[str, Tensor]:
        kv = open_kv(self.kv_steps, kv_cache, input_pos, input_pos, self.context, self.operators)
        self.trunk.fill(exit_states, input_pos, kv, self.layers)
        return kv.tensors


class _ExitHead(nn.Module):
    """What an exit, the target's norm and its head make of a state after the first layers."""

    def __init__(self, target: Target, own_exit: Exit | None) -> None:
        super().__init__()
        self.exit = own_exit or nn.Identity()
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
    own_exit = model.after(first) if model else None
    drafters, others = range(first), range(first, len(g.layers))
    skipped = _owners(target, others)

    def step(
        role: DrafterRole,
        width: int,
        module: nn.Module,
        layers: Iterable[int],
        inputs: Iterable[TensorSpec],
        outputs: Iterable[TensorSpec],
    ) -> Step:
        """`layers` are those whose K/V it takes, and gives where they are their own."""
        read = {g.layers[index].reads for index in layers}
        graph = GraphSpec(
            name=f"{role}_{width}" if role == "exit_verify" else role,
            role=role,
            part="target",
            width=width,
            inputs=(*inputs, *layout.tensors(read), *(operators.inputs if read else ())),
            outputs=(*outputs, *layout.tensors(_owners(target, layers))),
        )
        return Step(graph, module.eval())

    def verify(width: int) -> Step:
        inputs = target_inputs(target, layout, width)
        if not g.per_layer:  # those are made of the embeddings too; else the states are all that a layer takes
            inputs = tuple(one for one in inputs if one.name != "embeddings")
        given = *inputs, spec(STATES, "float32", 1, width, g.hidden)
        made = spec("logits", "float32", 1, width, g.vocab), spec("activations", "float32", 1, width, g.hidden)
        return step("exit_verify", width, _Layers(target, layout, others, operators), others, given, made)

    state, logits = spec(STATES, "float32", 1, 1, g.hidden), spec("logits", "float32", 1, 1, g.vocab)
    made = [state, spec("score", "float32", 1, 1)] if own_exit else [state]
    drafting = _Layers(target, layout, drafters, operators, own_exit)
    filling = _Fill(target, layout, skipped, operators)
    fill = step("exit_fill", 1, filling, skipped, [state, spec("input_pos", "int32", 1)], [])
    return [
        step("exit_draft", 1, drafting, drafters, target_inputs(target, layout, 1), made),
        step("exit_head", 1, _ExitHead(target, own_exit), (), [state], [logits]),
        *([fill] if skipped else []),
        *(verify(width) for width in (1, *plan.verify)),
    ]


def _owners(target: Target, layers: Iterable[int]) -> set[int]:
    """Those that own K/V."""
    return {index for index in layers if target.geometry.layers[index].owns_kv}
