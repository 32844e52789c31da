"""What each graph takes within the loop, and what the loop adds: a device profile of this machine.

Graphs are timed where they run, in real rounds: on their own they would find other things in the caches. Medians are
taken. What rounds take beyond those of the target's, in a drafter's graphs, in Python and by slower calls, is fitted to
whole texts, so that nothing has to be said of what a drafter runs: see `DraftingTiming`.
"""

from __future__ import annotations

import datetime
import statistics
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from . import host
from .clock import now
from .engine import Arrays, Delegating, Engine
from .errors import PocketdraftError
from .graphs import GraphSpec
from .manifest import Manifest
from .profile import (
    EMBEDDERS,
    DraftingTiming,
    GraphTiming,
    HostTiming,
    Profile,
    Speed,
    VerifyRole,
    files_digest,
)
from .target import Target

PACKAGES = {"litert": "ai-edge-litert", "executorch": "executorch", "onnx": "onnxruntime"}
VERIFIES = get_args(VerifyRole)
PREFILLS = 5  # calls of each prefill graph
Floats = npt.NDArray[np.float64]


@dataclass
class Calls:
    """The runs of one graph: what each took, and how many slots of the cache were committed before."""

    seconds: array[float] = field(default_factory=lambda: array("d"))
    filled: array[int] = field(default_factory=lambda: array("l"))


ByGraph = Mapping[str, Calls]


class TimedEngine(Delegating):
    """An engine that notes its calls."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._calls: defaultdict[str, Calls] = defaultdict(Calls)

    def run(self, graph: str, inputs: Arrays, cache: Any = None) -> dict[str, npt.NDArray[Any]]:
        started = now()
        outputs = super().run(graph, inputs, cache)
        seconds = now() - started
        place = inputs.get("input_pos")
        calls = self._calls[graph]
        calls.seconds.append(seconds)
        calls.filled.append(0 if place is None else int(place[0]))
        return outputs

    def take(self) -> ByGraph:
        """The calls since the last time."""
        calls, self._calls = self._calls, defaultdict(Calls)
        return calls


@dataclass(frozen=True)
class Generation:
    """One text: its rounds, those that drafted, their drafts, the time and the calls."""

    rounds: int
    drafted: int
    drafts: int
    seconds: float
    calls: ByGraph


@dataclass
class Timings:
    """Texts by drafter and the number of drafts that was asked for, and calls of the graphs that run prompts."""

    texts: dict[tuple[str, int], list[Generation]] = field(default_factory=dict)
    prefills: ByGraph = field(default_factory=dict)

    @property
    def lengths(self) -> set[int]:
        """The numbers of drafts that were asked for."""
        return {asked for _, asked in self.texts}

    def profile(
        self, manifest: Manifest, threads: int, lengths: Collection[int], bandwidth: float, speeds: Sequence[Speed] = ()
    ) -> Profile:
        """Of the texts that asked for one of `lengths`, 0 among them. Raises PocketdraftError where none drafted."""
        texts = {way: found for way, found in self.texts.items() if way[1] in lengths}
        calls = _together([self.prefills, *(one.calls for found in texts.values() for one in found)])
        _require(manifest, calls)
        graphs = tuple(_timing(graph, calls[graph.name]) for graph in manifest.graphs if graph.name in calls)
        host_timing = _host(graphs, texts["none", 0])
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
            host=host_timing,
            drafters=_drafters(graphs, texts, host_timing),
            speeds=tuple(speeds),
        )


def time_prefills(target: Target, engine: TimedEngine, random: np.random.Generator) -> ByGraph:
    """A few calls of each prefill graph, the first left out."""
    found = {}
    for graph in engine.manifest.graphs_of("prefill"):
        engine.take()
        for _ in range(PREFILLS + 1):
            tokens = random.integers(0, engine.manifest.vocab_size, graph.width)
            target.prefill(target.new_cache(), tokens.tolist())
        calls = engine.take()[graph.name]
        found[graph.name] = Calls(calls.seconds[1:], calls.filled[1:])
    return found


def _together(parts: Iterable[ByGraph]) -> ByGraph:
    found: defaultdict[str, Calls] = defaultdict(Calls)
    for part in parts:
        for graph, calls in part.items():
            found[graph].seconds.extend(calls.seconds)
            found[graph].filled.extend(calls.filled)
    return dict(found)


def _require(manifest: Manifest, calls: ByGraph) -> None:
    """That drafts were verified, with any graph."""
    if not any(graph.role in VERIFIES and graph.name in calls for graph in manifest.graphs):
        raise PocketdraftError(
            f"No round ran {manifest.graphs_of('verify')[0].name} or any other graph that verifies drafts, a profile "
            "needs some; give more prompts or more tokens."
        )


def _timing(graph: GraphSpec, calls: Calls) -> GraphTiming:
    lower, median, upper = np.quantile(calls.seconds, (0.25, 0.5, 0.75)).tolist()
    return GraphTiming(
        name=graph.name,
        role=graph.role,
        width=graph.width,
        filled=int(statistics.median(calls.filled)),
        median_s=median,
        lower_quartile_s=lower,
        upper_quartile_s=upper,
        runs=len(calls.seconds),
    )


def _host(graphs: Sequence[GraphTiming], plain: Sequence[Generation]) -> HostTiming:
    """Of plain decoding's median text: within a text slow calls count, as many of them make it slow; a text that
    another program slowed down does not."""
    medians = {graph.name: graph.median_s for graph in graphs}
    embedders = [graph.name for graph in graphs if graph.role in EMBEDDERS]
    ran = sum(len(one.calls[name].seconds) for one in plain for name in embedders if name in one.calls)
    return HostTiming(
        round_s=max(0.0, statistics.median(_beyond(one, medians) for one in plain)),
        lookup_share=ran / sum(one.rounds for one in plain) / max(1, len(embedders)),
    )


def _drafters(
    graphs: Sequence[GraphTiming], texts: Mapping[tuple[str, int], Sequence[Generation]], host: HostTiming
) -> dict[str, DraftingTiming]:
    """Of those that drafted at all, by the median text of each number of drafts: least squares."""
    target = {graph.name: graph.median_s for graph in graphs if graph.role in ("decode", *VERIFIES)}
    exits = {graph.name for graph in graphs if graph.role == "exit_verify"}
    plain_s = host.round_s + host.lookup_share * sum(graph.median_s for graph in graphs if graph.role in EMBEDDERS)
    timed = {}
    for drafter in dict.fromkeys(name for name, asked in texts if asked):
        by_length = [found for (name, asked), found in texts.items() if name == drafter and asked]
        every = [one for found in by_length for one in found]
        if any(one.drafts for one in every):
            points = np.array([_of_median_text(found, target) for found in by_length])
            drafting_s, draft_s = np.linalg.lstsq(points[:, :2], points[:, 2] - plain_s, rcond=None)[0].tolist()
            verify: VerifyRole = "exit_verify" if any(exits & one.calls.keys() for one in every) else "verify"
            timed[drafter] = DraftingTiming(verify=verify, drafting_s=drafting_s, draft_s=draft_s)
    return timed


def _of_median_text(found: Sequence[Generation], target: Mapping[str, float]) -> Floats:
    """[3] of a round: the share that drafted, drafts, and seconds beyond the `target`'s median calls."""
    rounds = [(one.drafted / one.rounds, one.drafts / one.rounds, _beyond(one, target)) for one in found]
    middle: Floats = np.median(rounds, axis=0)
    return middle


def _beyond(one: Generation, medians: Mapping[str, float]) -> float:
    """Seconds of a round beyond these graphs' median calls."""
    known = sum(median * len(one.calls[graph].seconds) for graph, median in medians.items() if graph in one.calls)
    return (one.seconds - known) / one.rounds
