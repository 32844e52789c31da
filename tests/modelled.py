"""The scripted engine in modelled time: what each graph takes is known, and so what should be made of measuring it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scripted_drafters import EveryDrafter, every_drafter

from pocketdraft.runtime import clock
from pocketdraft.runtime.benchmark import Opened
from pocketdraft.runtime.drafter_specs import DrafterSpecs
from pocketdraft.runtime.manifest import Manifest
from pocketdraft.runtime.prompts import Prompt
from pocketdraft.runtime.timing import TimedEngine

SECONDS = {
    "decode": 1.0,
    "verify": 1.0,
    "draft": 0.1,
    "dflash_draft": 0.4,
    "exit_draft": 0.2,
    "exit_verify": 0.7,
    "mtp_heads": 0.15,
    "model_decode": 0.12,
    "model_prefill": 0.2,
}
ROW_S = {"verify": 0.02, "exit_verify": 0.01}  # on top, for each row
OTHER_S, MOVE_S, WORK_S = 0.01, 0.05, 0.02  # any other graph, moving K/V, a part of the loop
COLD = 1.2
PROMPTS = [Prompt(text=f"{first}{second}", domain=domain) for domain, first in (("a", 1), ("b", 2)) for second in "34"]


class Digits:
    """A tokenizer of what needs no more than one token a digit."""

    def encode(self, text: str) -> list[int]:
        return [int(digit) for digit in text]


@dataclass
class ModelledTime(EveryDrafter):
    """`slow` are roles and how many times as long they take. A graph after one of another part of the bundle takes
    longer, as it finds its weights out of the caches."""

    slow: Mapping[str, float] = field(default_factory=dict)
    now: float = 0.0
    part: str = ""

    def run(self, graph: str, inputs: Any, cache: Any = None) -> dict[str, Any]:
        spec = next(one for one in self.manifest.graphs if one.name == graph)
        seconds = SECONDS.get(spec.role, OTHER_S) + spec.width * ROW_S.get(spec.role, 0.0)
        self.now += seconds * self.slow.get(spec.role, 1.0) * (1.0 if spec.part == self.part else COLD)
        self.part = spec.part
        return super().run(graph, inputs, cache)

    def read_clock(self) -> float:
        """Stands for the loop's own work, which lies between two readings."""
        self.now += WORK_S
        return self.now

    def compact(self, cache: Any, sources: list[int], start: int) -> None:
        self.now += MOVE_S
        super().compact(cache, sources, start)


def opened(monkeypatch: Any, manifest: Manifest | None = None, **slow: float) -> Opened:
    """A scripted bundle in use; from here on the clock is its engine's."""
    engine = ModelledTime(manifest or every_drafter(200), slow=slow)
    monkeypatch.setitem(clock._NOW, "wall", engine.read_clock)
    monkeypatch.setattr("pocketdraft.runtime.host.memory_bandwidth", lambda threads: 1e9)
    return Opened(TimedEngine(engine), Digits(), 0.0, 0.0)  # type: ignore[arg-type]


def with_one(kind: str | None) -> Manifest:
    """A scripted bundle with this kind of drafter, or none, and its graphs only."""
    whole = every_drafter(200)
    specs = DrafterSpecs(**({kind: getattr(whole.drafters, kind)} if kind else {}))
    others = {role for one in whole.drafters.kinds if one != kind for role in getattr(whole.drafters, one).roles}
    kept = set() if kind is None else set(getattr(whole.drafters, kind).roles)
    graphs = tuple(graph for graph in whole.graphs if graph.role not in others - kept)
    return whole.model_copy(update={"drafters": specs, "graphs": graphs})
