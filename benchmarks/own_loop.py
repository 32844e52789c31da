"""This runtime's loop in a process of its own, as LiteRT-LM's is: no torch in its memory. Called by loops.py.

Reads a job as JSON from standard input, writes tokens, seconds of the rounds and, if instrumented, the share of
the rounds (each session's first one aside) that lies outside of graph calls.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer


class TimedModel:
    """Stands in for a CompiledModel and adds up the time of its graph calls."""

    def __init__(self, model: Any) -> None:
        self._model, self.seconds = model, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def run_by_index(self, *inputs: Any) -> None:
        started = time.perf_counter()
        self._model.run_by_index(*inputs)
        self.seconds += time.perf_counter() - started


def main() -> None:
    job = json.load(sys.stdin)
    bundle = Path(job["bundle"])
    engine: Any = open_engine(bundle, 1)
    tokenizer = Tokenizer(bundle / "tokenizer.json", engine.manifest.tokens.bos)
    models = []
    if job["instrumented"]:  # costs time itself, so never in a run whose speed counts
        for graph in engine._graphs.values():
            models.append(TimedModel(graph.model))
            graph.model = models[-1]
    target, tokens, rounds_s, first_s, graphs_s = Target(engine), 0, 0.0, 0.0, 0.0
    for text in job["texts"]:
        session = open_session(engine, job["drafter"], job["drafts"], target)
        stream = session.generate(tokenizer.encode(text), job["budget"])
        next(stream)  # holds the prefill, whose graph calls are no part of a round
        first_s += sum(session.stats.seconds.values())
        graphs_s -= sum(model.seconds for model in models)
        for _ in stream:
            pass
        graphs_s += sum(model.seconds for model in models)
        rounds_s += sum(session.stats.seconds.values())
        tokens += session.stats.emitted
    print(f"\n{json.dumps({'tokens': tokens, 'seconds': rounds_s, 'outside': 1 - graphs_s / (rounds_s - first_s)})}")


if __name__ == "__main__":
    main()
