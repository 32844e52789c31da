"""Runs on the emulated machine: python -m arm64.generate BUNDLE BUDGET LOGITS.npy [libexecutorch_native.so].

Takes a job as JSON on standard input.

The job has `texts` and, for each, the `tokens` that the other machine gave. Writes the logits along those tokens,
float32 [texts, budget, V], and prints what this machine generates by itself.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import numpy as np
from arm64 import executorch_native

from pocketdraft.runtime.cache import Cache
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.proposal import NOTHING
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer


def logits_along(target: Target, prompt: list[int], tokens: list[int]) -> np.ndarray:
    """Of each token given what is before it, decoded one by one."""
    cache = Cache(target.engine.new_cache(), target.context_length)
    target.prefill(cache, prompt[:-1])
    rows = []
    for token in [prompt[-1], *tokens[:-1]]:
        rows.append(target.verify(cache, token, NOTHING).logits[0].copy())
        cache.advance(1)
    return np.stack(rows)


def main() -> None:
    bundle, budget, job = Path(sys.argv[1]), int(sys.argv[2]), json.load(sys.stdin)
    if len(sys.argv) > 4:
        executorch_native.install(Path(sys.argv[4]))
    engine = open_engine(bundle, 1)
    target, tokenizer = Target(engine), Tokenizer(bundle / "tokenizer.json", engine.manifest.tokens.bos)
    prompts = [tokenizer.encode(text) for text in job["texts"]]
    np.save(sys.argv[3], [logits_along(target, p, tokens) for p, tokens in zip(prompts, job["tokens"], strict=True)])
    found = {"machine": platform.machine()}
    for drafter in ("none", "mtp"):
        streams = [open_session(engine, drafter, target=target).generate(prompt, budget) for prompt in prompts]
        found[drafter] = [[token for emitted in stream for token in emitted.tokens] for stream in streams]
    print(f"\n{json.dumps(found)}")


if __name__ == "__main__":
    main()
