"""How the parity ladder feeds the graphs of drafters: calls of real rounds, noted on one engine, run again on others.

Each rung gets the inputs that were noted, so an error shows in the graph that made it. K/V is each rung's own, and
all rows that a call writes are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .calm import NEVER, ExitRule
from .engine import Arrays, Delegating, Engine
from .errors import PocketdraftError
from .ladder import CLIMBED, Outputs, run_graph
from .leaving import LeavingTarget
from .session import open_session
from .target import Target

ROUNDS = 2  # the second drafts from what the first has committed


@dataclass(frozen=True)
class Call:
    graph: str
    inputs: Arrays


Calls = list[Call]  # of one sequence


class _Noting(Delegating):
    """Notes the calls of each sequence, which starts with its K/V."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.sequences: list[Calls] = []

    def new_cache(self) -> Any:
        self.sequences.append([])
        return super().new_cache()

    def run(self, graph: str, inputs: Arrays, cache: Any = None) -> dict[str, npt.NDArray[Any]]:
        self.sequences[-1].append(Call(graph, inputs))
        return super().run(graph, inputs, cache)


def note(engine: Engine, tokens: Sequence[int]) -> list[Calls]:
    """Calls that run every graph of the drafters that this engine has, MTP's aside: a few rounds of chains each.

    A drafter takes the graph of a width where as many tokens come at once, so each width has its own prompt, a
    beginning of `tokens`, and as many drafts as fill the widest verify; an early exit's as many as fill one of that
    width: the rows that pad an `exit_verify` read K/V of the first layers that no call has written, and engines may
    keep there what they like.
    """
    manifest, noting = engine.manifest, _Noting(engine)
    most = manifest.graphs_of("verify")[-1].width - 1
    for kind in manifest.drafters.kinds:
        roles = set(getattr(manifest.drafters, kind).roles)
        if not roles <= CLIMBED:
            for width in sorted({graph.width for graph in manifest.graphs if graph.role in roles}):
                drafts = width - 1 if kind == "early_exit" else most
                _play(noting, kind, tokens[: width + 1], drafts or most, Target(noting))
    for target in _left_early(noting):
        _play(noting, "none", tokens[:2], 0, target)
    return noting.sequences


def replay(engine: Engine, sequences: Sequence[Calls]) -> dict[str, Outputs]:
    """What the drafters' graphs give, and the K/V rows that they write: each [calls, ...]."""
    graphs = {graph.name: graph for graph in engine.manifest.graphs}
    found: dict[str, dict[str, list[npt.NDArray[np.float32]]]] = {}
    for calls in sequences:
        cache = engine.new_cache()
        for call in calls:
            graph = graphs[call.graph]
            if graph.role in CLIMBED:
                engine.run(graph.name, call.inputs, cache)
                continue
            for name, array in run_graph(engine, graph, call.inputs, cache).items():
                found.setdefault(graph.name, {}).setdefault(name, []).append(array)
    return {graph: {name: np.stack(rows) for name, rows in found[graph].items()} for graph in graphs if graph in found}


def _play(engine: Engine, drafter: str, prompt: Sequence[int], drafts: int, target: Target) -> None:
    session = open_session(engine, drafter, drafts, target)
    context = engine.manifest.context_length
    session.begin(prompt[:context], context)
    for _ in range(ROUNDS):
        if session.context.finish is None:
            session.round()


def _left_early(engine: Engine) -> Iterator[Target]:
    """A target that no token leaves early and one an exit that all leave there, if the bundle lets them at all."""
    with suppress(PocketdraftError):
        staying = LeavingTarget(engine, ExitRule("gap", NEVER, ROUNDS, tau=None))
        yield staying
        for passed in range(len(staying.exits)):
            yield LeavingTarget(engine, ExitRule("gap", 0.0, ROUNDS, tau=None), passed)
