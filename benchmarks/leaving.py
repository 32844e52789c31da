"""What leaving early saves on a bundle's graphs, at a certified risk (CALM, arXiv 2207.07061).

    python benchmarks/leaving.py BUNDLE... [--delta 0.3] [--measures gap,classifier] [--tokens 48] [--rounds 3]

For each bundle and measure the threshold is certified on `prompts.jsonl`, as `pocketdraft calm` does it. Then each of
the prompts is decoded plainly and leaving early, in turn and --rounds times; speed is the ratio of the two, the best
time of each, and the median over prompts. In CPU time, one thread. The table is Markdown; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pocketdraft.export.tiny import PROMPTS_FILE
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.leaving import LeavingTarget, certify
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--delta", type=float, default=0.3)
    parser.add_argument("--measures", default="gap,classifier")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    found = []
    print("| bundle | measure | threshold | risk | left early, after layer | speed |\n|" + " --- |" * 6)
    for bundle in chosen.bundles:
        engine = open_engine(bundle, 1)
        tokenizer = Tokenizer(bundle / "tokenizer.json", engine.manifest.tokens.bos)
        prompts = [tokenizer.encode(prompt.text) for prompt in read_prompts(PROMPTS_FILE)]
        for measure in chosen.measures.split(","):
            certified, shares = certify(engine, prompts, chosen.tokens, chosen.delta, 0.05, measure)
            targets = Target(engine), LeavingTarget(engine, certified.rule)
            ratio = speed(targets, prompts, chosen.tokens, chosen.rounds)
            where = ", ".join(f"{layers}: {share:.0%}" for layers, share in shares.items())
            row = bundle.name, measure, f"{certified.rule.threshold:.2f}", f"{certified.risk:.3f}", where
            print(f"| {' | '.join(row)} | {ratio:.2f}x |", flush=True)
            found.append({"bundle": bundle.name, "measure": measure, "threshold": certified.rule.threshold})
            found[-1] |= {"risk": certified.risk, "left_at": shares, "speed": ratio}
        engine.close()
    print(json.dumps(found))


def speed(targets: Sequence[Target], prompts: Sequence[Sequence[int]], tokens: int, rounds: int) -> float:
    """Of the second of two targets, over the first's."""
    ratios = []
    for prompt in prompts:
        seconds: list[list[float]] = [[], []]
        for _ in range(rounds):
            for target, own in zip(targets, seconds, strict=True):
                own.append(seconds_a_token(target, prompt, tokens))
        plain, leaving = map(min, seconds)
        ratios.append(plain / leaving)
    return float(np.median(ratios))


def seconds_a_token(target: Target, prompt: Sequence[int], tokens: int) -> float:
    """Of CPU time, the prompt's aside."""
    session = open_session(target.engine, "none", 0, target)
    session.begin(prompt, tokens)
    started, made = time.process_time(), 0
    while session.context.finish is None:
        made += len(session.round().tokens)
    return (time.process_time() - started) / made


if __name__ == "__main__":
    main()
