"""This runtime's loop in a process of its own, as LiteRT-LM's is: no torch in its memory. Called by peers.py.

Reads a job as JSON from standard input, writes tokens, seconds of the rounds, outputs, accepted drafts a round and,
if instrumented, the share of the rounds (each session's first one aside) that lies outside of graph calls.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target


class TimedCall:
    """Stands in for a graph's call and adds up its time."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call, self.seconds = call, 0.0

    def __call__(self, *inputs: Any) -> None:
        started = time.perf_counter()
        self._call(*inputs)
        self.seconds += time.perf_counter() - started


def main() -> None:
    job = json.load(sys.stdin)
    engine: Any = open_engine(Path(job["bundle"]), 1)
    calls = []
    if job["instrumented"]:  # costs time itself, so never in a run whose speed counts
        for graph in engine._graphs.values():
            graph.call = TimedCall(graph.call)
            calls.append(graph.call)
    target, outputs, rounds_s, first_s, graphs_s = Target(engine), [], 0.0, 0.0, 0.0
    accepted, drafted_rounds = 0, 0
    for prompt in job["prompts"]:
        session = open_session(engine, job["drafter"], job["drafts"], target)
        stream = session.generate(prompt, job["budget"])
        output = [*next(stream).tokens]  # holds the prefill, whose graph calls are no part of a round
        first_s += session.stats.total_s
        graphs_s -= sum(call.seconds for call in calls)
        for emitted in stream:
            output += emitted.tokens
        graphs_s += sum(call.seconds for call in calls)
        rounds_s += session.stats.total_s
        accepted += session.stats.accepted
        drafted_rounds += session.stats.drafted_rounds
        outputs.append(output)
    found = {
        "tokens": sum(map(len, outputs)),
        "seconds": rounds_s,
        "outputs": outputs,
        "accepted": accepted / drafted_rounds if drafted_rounds else None,
        "outside": 1 - graphs_s / (rounds_s - first_s),
    }
    print(f"\n{json.dumps(found)}")


if __name__ == "__main__":
    main()
