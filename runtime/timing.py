"""What each graph takes within the loop, and what the loop adds: a device profile of this machine.

Graphs are timed where they run, in real rounds: on their own they would find other things in the caches. Medians are
taken, and what rounds take beyond them, in Python and by slower calls, is fitted to whole texts: see `HostTiming`.
"""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt

from . import host
from .clock import now
from .engine import Arrays, Delegating, Engine
from .errors import PocketdraftError
from .graphs import GraphSpec
from .manifest import Manifest
from .profile import GraphTiming, HostTiming, Profile, Speed, files_digest
from .target import Target

PACKAGES = {"litert": "ai-edge-litert", "executorch": "executorch", "onnx": "onnxruntime"}
EMBEDDERS = ("embed", "embed_per_layer")
PREFILLS = 5  # calls of each prefill graph


@dataclass(frozen=True)
class Call:
    """One run of a graph. `filled` slots of the cache were committed before."""

    graph: str
    seconds: float
    filled: int


class TimedEngine(Delegating):
    """An engine that notes its calls."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._calls: list[Call] = []

    def run(self, graph: str, inputs: Arrays, cache: Any = None) -> dict[str, npt.NDArray[Any]]:
        started = now()
        outputs = super().run(graph, inputs, cache)
        seconds = now() - started
        place = inputs.get("input_pos")
        self._calls.append(Call(graph, seconds, 0 if place is None else int(place[0])))
        return outputs

    def take(self) -> list[Call]:
        """The calls since the last time."""
        calls, self._calls = self._calls, []
        return calls


@dataclass(frozen=True)
class Generation:
    """One text by the MTP drafter, or plain: its rounds, their drafts, time and calls of graphs."""

    rounds: int
    drafts: int
    seconds: float
    calls: tuple[Call, ...]


@dataclass
class Timings:
    """Texts by the number of drafts that was asked for, and calls of the graphs that run prompts."""

    texts: dict[int, list[Generation]] = field(default_factory=dict)
    prefills: list[Call] = field(default_factory=list)

    def profile(
        self, manifest: Manifest, threads: int, lengths: Collection[int], bandwidth: float, speeds: Sequence[Speed] = ()
    ) -> Profile:
        """Of the texts that asked for one of `lengths`. Raises PocketdraftError where they leave a graph out."""
        texts = {asked: self.texts[asked] for asked in lengths if asked in self.texts}
        calls: dict[str, list[Call]] = {}
        for call in [*self.prefills, *(call for found in texts.values() for one in found for call in one.calls)]:
            calls.setdefault(call.graph, []).append(call)
        left_out = [g for g in manifest.graphs if g.name not in calls and g.role in ("decode", "draft", "embed")]
        if left_out:
            raise PocketdraftError(
                f"No round ran the graph {left_out[0].name}, a profile needs all; give more prompts or more tokens."
            )
        graphs = tuple(_timing(graph, calls[graph.name]) for graph in manifest.graphs if graph.name in calls)
        return Profile(
            origin="measured",
            source=f"pocketdraft {metadata.version('pocketdraft')}",
            date=datetime.date.today().isoformat(),
            device=host.describe(),
            backend=manifest.backend,
            accelerator="cpu",
            runtime_version=metadata.version(PACKAGES[manifest.backend]),
            bundle_sha256=files_digest(manifest),
            threads=threads,
            memory_bandwidth=bandwidth,
            graphs=graphs,
            host=_host(graphs, texts),
            speeds=tuple(speeds),
        )


def time_prefills(target: Target, engine: TimedEngine, random: np.random.Generator) -> list[Call]:
    """A few calls of each prefill graph, the first left out."""
    calls: list[Call] = []
    for graph in engine.manifest.graphs_of("prefill"):
        for again in range(PREFILLS + 1):
            cache = target.new_cache()
            engine.take()
            target.prefill(cache, random.integers(0, engine.manifest.vocab_size, graph.width).tolist())
            calls += [call for call in engine.take() if again and call.graph == graph.name]
    return calls


def _timing(graph: GraphSpec, calls: Sequence[Call]) -> GraphTiming:
    lower, median, upper = np.quantile([call.seconds for call in calls], (0.25, 0.5, 0.75)).tolist()
    return GraphTiming(
        name=graph.name,
        role=graph.role,
        width=graph.width,
        filled=int(statistics.median(call.filled for call in calls)),
        median_s=median,
        lower_quartile_s=lower,
        upper_quartile_s=upper,
        runs=len(calls),
    )


def _host(graphs: Sequence[GraphTiming], texts: Mapping[int, Sequence[Generation]]) -> HostTiming:
    """What rounds take beyond the medians of their graphs: a line over the number of drafts, and none apart.

    Of the median text by number: within a text slow calls count, as many of them make it slow; a text that another
    program slowed down does not.
    """
    medians = {graph.name: graph.median_s for graph in graphs}
    drafts, beyond = [], []
    for _, found in sorted(texts.items()):
        known = [sum(medians[call.graph] for call in one.calls) for one in found]
        drafts.append(statistics.median(one.drafts / one.rounds for one in found))
        beyond.append(
            statistics.median((one.seconds - graph_s) / one.rounds for one, graph_s in zip(found, known, strict=True))
        )
    start = float(np.interp(0.0, drafts, beyond))  # plain decoding's, where it is among them
    rest = [(n, more) for n, more in zip(drafts, beyond, strict=True) if n > 0]
    slope, at_none = _line(rest) if len(rest) > 1 else _through(start, rest)
    embedders = {graph.name for graph in graphs if graph.role in EMBEDDERS}
    every = [one for found in texts.values() for one in found]
    ran = sum(call.graph in embedders for one in every for call in one.calls)
    lookups = sum(2 * one.drafts + one.rounds for one in every) * len(embedders)
    return HostTiming(
        round_s=max(0.0, start),
        drafting_s=max(0.0, at_none - max(0.0, start)),
        draft_s=max(0.0, slope),
        lookup_share=min(1.0, ran / lookups),
    )


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope and start of the line with the least squared error."""
    x, y = np.array(points, np.float64).T
    slope, start = np.polyfit(x, y, 1)
    return float(slope), float(start)


def _through(start: float, rest: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope and start of a line from `start` at 0 drafts; flat where nothing was drafted."""
    return ((rest[0][1] - start) / rest[0][0] if rest else 0.0, start)
