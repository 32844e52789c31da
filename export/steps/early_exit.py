"""Self-speculation (LayerSkip, arXiv 2404.16710): the target's first layers draft, the others verify.

The graphs split the target where the drafting ends, so that no layer runs twice for a token: `exit_draft` runs the
first layers and writes their K/V, `exit_verify_K` goes on from the states that it gave. A token may also leave there
for good (CALM, arXiv 2207.07061): `exit_fill` then makes the other layers' K/V of its state.

Where a token may leave later as well, it is asked exit by exit. After the first, each has graphs of width 1, named by
the layers C before it: `further_exit_C` goes on from the state at the exit before and writes the K/V of the layers
between, `further_head_C` is its head, and where a layer from C on owns K/V, `further_fill_C` makes them of the state
at C. `further_rest_C`, C the last, runs the other layers for a token that left nowhere, as `exit_verify_1` does where
there is one exit. So each layer's K/V of a token are written once: before its exit as the layer ran, after it of the
state that left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

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
    """Some of the target's layers. The last give logits; others their last state, and a trained exit's score of it.

    `exits` is that one, if any, by the name that its weights go by.
    """

    def __init__(
        self, target: Target, layout: KVLayout, layers: range, operators: Operators, exits: Mapping[str, Exit]
    ) -> None:
        super().__init__()
        self.trunk, self.exit_name = target.trunk, _add(self, exits)
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
            if self.exit_name:
                made["score"] = getattr(self, self.exit_name).score(state)
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
    """What an exit, the target's norm and its head make of a state between two layers."""

    def __init__(self, target: Target, exits: Mapping[str, Exit]) -> None:
        super().__init__()
        self.exit_name = _add(self, exits)
        self.norm, self.lm_head, self.softcap = target.trunk.norm, target.lm_head, target.geometry.softcap

    def forward(self, exit_states: Tensor) -> dict[str, Tensor]:
        state = getattr(self, self.exit_name)(exit_states) if self.exit_name else exit_states
        return {"logits": capped(self.lm_head(self.norm(state)), self.softcap)}


def _add(module: nn.Module, exits: Mapping[str, Exit]) -> str | None:
    """The exit under its name, which comes back. Weights of one name are one: no two exits may share it."""
    for name, own in exits.items():
        module.add_module(name, own)
    return next(iter(exits), None)


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
    first, *further = _cuts(model, plan, target)
    return EarlyExitSpec(layers=first, further=tuple(further))


def _cuts(model: Exits | None, plan: Plan, target: Target) -> tuple[int, ...]:
    """The layers before each exit; so many as before the first one draft: as the plan says, else those before K/V are
    shared, else up to the middle exit.

    Raises PocketdraftError for an exit that leaves no layer after it.
    """
    if target.geometry.recurrent:
        asked = ",".join(map(str, plan.early_exit)) or "asked for"
        raise PocketdraftError(
            f"--early-exit is {asked}, the target has recurrent layers, which no token can skip; leave it out."
        )
    count = len(target.geometry.layers)
    own = sum(layer.owns_kv for layer in target.geometry.layers)
    trained = model.cuts if model else ()
    cuts = plan.early_exit or (own if own in trained else trained[len(trained) // 2],)
    wrong = next((cut for cut in cuts if not 0 < cut < count), None)
    if wrong is not None:
        raise PocketdraftError(
            f"--early-exit is {wrong}, the target has {count} layers; give a number from 1 to {count - 1}."
        )
    return cuts


def steps(model: Exits | None, plan: Plan, target: Target, target_kv: KVLayout, operators: Operators) -> list[Step]:
    """`model` None is a target that was trained to be left early: its own norm and head read any layer's state."""
    g, layout, cuts = target.geometry, target_kv, _cuts(model, plan, target)
    state, logits = spec(STATES, "float32", 1, 1, g.hidden), spec("logits", "float32", 1, 1, g.vocab)
    scored = [state, spec("score", "float32", 1, 1)] if model else [state]

    def own(cut: int) -> dict[str, Exit]:
        return {"exit" if cut == cuts[0] else f"exit_{cut}": model.after(cut)} if model else {}

    def step(
        role: DrafterRole,
        module: nn.Module,
        layers: Iterable[int],
        inputs: Iterable[TensorSpec],
        outputs: Iterable[TensorSpec],
        number: int | None = None,
        width: int = 1,
    ) -> Step:
        """`layers` are those whose K/V it takes, and gives where they are their own. `number` goes into its name."""
        read = {g.layers[index].reads for index in layers}
        graph = GraphSpec(
            name=role if number is None else f"{role}_{number}",
            role=role,
            part="target",
            width=width,
            inputs=(*inputs, *layout.tensors(read), *(operators.inputs if read else ())),
            outputs=(*outputs, *layout.tensors(_owners(target, layers))),
        )
        return Step(graph, module.eval())

    def resumed(width: int) -> Iterator[TensorSpec]:
        """What layers take that go on from states."""
        for one in target_inputs(target, layout, width):
            if one.name != "embeddings" or g.per_layer:  # per-layer embeddings are made of the embeddings too
                yield one
        yield spec(STATES, "float32", 1, width, g.hidden)

    def rest(role: DrafterRole, cut: int, number: int, width: int = 1) -> Step:
        layers = range(cut, len(g.layers))
        made = spec("logits", "float32", 1, width, g.vocab), spec("activations", "float32", 1, width, g.hidden)
        return step(role, _Layers(target, layout, layers, operators, {}), layers, resumed(width), made, number, width)

    def leave(head: DrafterRole, fill: DrafterRole, cut: int, number: int | None = None) -> Iterator[Step]:
        yield step(head, _ExitHead(target, own(cut)), (), [state], [logits], number)
        if skipped := _owners(target, range(cut, len(g.layers))):
            module = _Fill(target, layout, skipped, operators)
            yield step(fill, module, skipped, [state, spec("input_pos", "int32", 1)], [], number)

    drafters, widths = range(cuts[0]), plan.verify if len(cuts) > 1 else (1, *plan.verify)
    drafting = _Layers(target, layout, drafters, operators, own(cuts[0]))
    made = [
        step("exit_draft", drafting, drafters, target_inputs(target, layout, 1), scored),
        *leave("exit_head", "exit_fill", cuts[0]),
        *(rest("exit_verify", cuts[0], width, width) for width in widths),
    ]
    for before, cut in pairwise(cuts):
        between = range(before, cut)
        module = _Layers(target, layout, between, operators, own(cut))
        made.append(step("further_exit", module, between, resumed(1), scored, cut))
        made += leave("further_head", "further_fill", cut, cut)
    return [*made, rest("further_rest", cuts[-1], cuts[-1])] if len(cuts) > 1 else made


def _owners(target: Target, layers: Iterable[int]) -> set[int]:
    """Those that own K/V."""
    return {index for index in layers if target.geometry.layers[index].owns_kv}
