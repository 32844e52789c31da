"""Chains and trees of the MTP drafter at the same number of nodes: accepted per round, by domain.

    python benchmarks/trees.py BUNDLE [--nodes 4,8] [--temperature 0,1] [--per-domain 8] [--max-tokens 96]

Both draft for the same prompts, with the same seed, and must give plain decoding's text (drafts accepted by exact
match). A tree asks for fewer calls of the drafter; `calls` says how many a round. "Novel" rounds are those whose next
tokens had not occurred before. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from pocketdraft.export.tiny import PROMPTS_FILE
from pocketdraft.runtime import terminal
from pocketdraft.runtime.bench import Run, run
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.sampler import Sampler
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.stats import Stats
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer
from pocketdraft.runtime.timing import Calls, TimedEngine

DRAFTERS = ("mtp", "mtp_tree")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--nodes", default="4,8")
    parser.add_argument("--temperature", default="0,1")
    parser.add_argument("--per-domain", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=96)
    chosen = parser.parse_args()
    terminal.silence_native_code()
    engine = TimedEngine(open_engine(chosen.bundle, 1))
    tokenizer = Tokenizer(chosen.bundle / "tokenizer.json", engine.manifest.tokens.bos)
    prompts = read_prompts(PROMPTS_FILE, chosen.per_domain)
    rows: list[dict[str, Any]] = []
    for temperature in (float(word) for word in chosen.temperature.split(",")):
        for nodes in (int(word) for word in chosen.nodes.split(",")):
            for row in compare(engine, tokenizer, prompts, nodes, temperature, chosen.max_tokens):
                rows.append({"temperature": temperature, "nodes": nodes, **row})
                print(" ".join(f"{name}={value}" for name, value in rows[-1].items()))
    print(json.dumps({"bundle": chosen.bundle.name, "rows": rows}))


def compare(
    engine: TimedEngine, tokenizer: Tokenizer, prompts: Any, nodes: int, temperature: float, budget: int
) -> list[dict[str, Any]]:
    """One row a domain and drafter. Raises AssertionError where the drafters' texts differ."""
    target = Target(engine)
    draft = engine.manifest.graphs_of("draft")[0].name
    stats: dict[tuple[str, str], Stats] = defaultdict(Stats)
    calls: dict[tuple[str, str], int] = defaultdict(int)
    runs: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        texts = set()
        for drafter in DRAFTERS if number % 2 else DRAFTERS[::-1]:
            key = prompt.domain, drafter
            sampler = Sampler(Sampling(temperature, seed=number))
            session = open_session(engine, drafter, nodes, target, sampler)
            session.stats = stats[key]
            engine.take()
            one = run(session, tokenizer.encode(prompt.text), budget)
            calls[key] += len(engine.take().get(draft, Calls()).seconds)
            runs[key].append(one)
            texts.add(one.tokens)
        assert len(texts) == 1, f"chain and tree differ after {prompt.text[:40]!r}"
    return [
        {
            "domain": domain,
            "drafter": drafter,
            "accepted": round(found.accepted_per_round, 3),
            "novel": round(float(np.mean([count for one in runs[domain, drafter] for count in one.novel] or [0])), 3),
            "calls": round(calls[domain, drafter] / found.rounds, 2),
            "rounds": found.rounds,
            "tokens_per_s": round(found.tokens_per_s),
        }
        for (domain, drafter), found in stats.items()
    ]


if __name__ == "__main__":
    main()
