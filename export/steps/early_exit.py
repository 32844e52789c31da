"""Self-speculation (LayerSkip, arXiv 2404.16710): the target's first layers draft, the others verify.

The graphs split the target where the drafting ends, so that no layer runs twice for a token: `exit_draft` runs the
first layers and writes their K/V, `exit_verify_K` goes on from the states that it gave.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pocketdraft.runtime.drafter_specs import EarlyExitSpec
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import GraphSpec

from ..kv_int8 import open_kv
from ..kv_layout import KVLayout
from ..models.decoder import Target
from ..step import Operators, Step, spec
from .target import capped, target_inputs

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
    """What the target's own norm and head make of a state after the first layers."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.norm, self.lm_head, self.softcap = target.trunk.norm, target.lm_head, target.geometry.softcap

    def forward(self, exit_states: Tensor) -> dict[str, Tensor]:
        return {"logits": capped(self.lm_head(self.norm(exit_states)), self.softcap)}


def early_exit_steps(
    target: Target, layout: KVLayout, first: int, verify: tuple[int, ...], operators: Operators
) -> list[Step]:
    """The first `first` layers draft. Raises PocketdraftError if that leaves none to verify, or none to draft."""
    g = target.geometry
    count = len(g.layers)
    if not 0 < first < count:
        raise PocketdraftError(
            f"--early-exit is {first}, the target has {count} layers; give a number from 1 to {count - 1}."
        )

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
        Step(head, _ExitHead(target).eval()),
        *(step(f"exit_verify_{width}", "exit_verify", width, range(first, count)) for width in (1, *verify)),
    ]


def early_exit_spec(first: int) -> EarlyExitSpec:
    return EarlyExitSpec(layers=first)
