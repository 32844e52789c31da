"""Acceptance of a bundle's drafter by draft length, position and domain: the figures of a model card.

    python benchmarks/acceptance.py BUNDLE [--drafts 1,2,4,8] [--max-tokens 128]

Greedy, and sampled at temperature 1: the target's token is drawn once per position (its argmax after Gumbel
noise) and the walk goes on while the greedy draft equals it, which leaves the target's distribution as it is.
The first table is Markdown; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketdraft.export.tiny import PROMPTS_FILE
from pocketdraft.runtime import terminal
from pocketdraft.runtime.bench import bench
from pocketdraft.runtime.engine import Arrays, Delegating, Engine, open_engine
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.stats import Stats
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer


class SampledEngine(Delegating):
    """An engine whose target draws from its distribution: argmax of logits plus Gumbel noise is a sample."""

    def __init__(self, engine: Engine, seed: int) -> None:
        super().__init__(engine)
        self._target = {graph.name for graph in engine.manifest.graphs if graph.role in ("decode", "verify")}
        self._random = np.random.default_rng(seed)

    def run(self, graph: str, inputs: Arrays, cache: Any = None) -> dict[str, npt.NDArray[Any]]:
        outputs = super().run(graph, inputs, cache)
        if graph in self._target:
            outputs["logits"] = outputs["logits"] + self._random.gumbel(size=outputs["logits"].shape)
        return outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--drafts", default="1,2,4,8")
    parser.add_argument("--max-tokens", type=int, default=128)
    chosen = parser.parse_args()
    terminal.silence_native_code()
    lengths = [int(number) for number in chosen.drafts.split(",")]
    engine = open_engine(chosen.bundle, 1)
    tokenizer = Tokenizer(chosen.bundle / "tokenizer.json", engine.manifest.tokens.bos)
    prompts = read_prompts(PROMPTS_FILE)
    greedy = {k: bench(Target(engine), tokenizer, prompts, chosen.max_tokens, k, lambda done: None) for k in lengths}
    sampled: dict[str, Stats] = {}
    noisy = Target(SampledEngine(engine, seed=0))
    for prompt in prompts:
        session = open_session(noisy.engine, "mtp", 4, noisy)
        session.stats = sampled.setdefault(prompt.domain, Stats())
        for _ in session.generate(tokenizer.encode(prompt.text), chosen.max_tokens):
            pass
    print(f"| domain | greedy K={'/'.join(map(str, lengths))} | K=4, novel only | prompt lookup, K=4 | T=1, K=4 |")
    print("| --- | --- | --- | --- | --- |")
    found = {}
    for domain, stats in sampled.items():
        four = greedy[4][domain]
        by_length = [greedy[k][domain].stats["mtp"] for k in lengths]
        lookup = four.stats["prompt_lookup"].accepted / four.stats["prompt_lookup"].rounds
        cells = " / ".join(f"{s.accepted_per_round:.2f}" for s in by_length)
        print(f"| {domain} | {cells} | {four.novel_accepted:.2f} | {lookup:.2f} | {stats.accepted_per_round:.2f} |")
        found[domain] = {
            "greedy": {k: round(s.accepted_per_round, 3) for k, s in zip(lengths, by_length, strict=True)},
            "by_position": [round(share, 3) for share in by_length[-1].acceptance_by_position()],
            "conditional_by_position": [round(p, 3) for p in by_length[-1].conditional_acceptance_by_position()],
            "novel": round(four.novel_accepted, 3),
            "prompt_lookup": round(lookup, 3),
            "sampled": round(stats.accepted_per_round, 3),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
