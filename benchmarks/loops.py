"""Three loops on one pair: this runtime's, LiteRT-LM's and transformers' assisted generation.

    python benchmarks/loops.py [--size tiny|large|huge] [--recipe w8] [--repeats 5]

Every repeat runs all of them in turn, on the same prompts and with one thread, so that noise hits them alike (the
first two in processes of their own, which open the bundle anew);
what is reported are medians, and medians of the ratios within a repeat. "large" and "huge" are pairs of the same shape
with random weights (nothing is accepted, every round is refused at its first draft), made on the spot.

The physics: a round costs one verify and K draft calls, whatever runs the loop. What a loop adds is the host's
work between graph calls, shown as `outside`, the share of a drafted round that no graph call accounts for.

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from pairs import random_pair
from rich.console import Console
from rich.table import Table
from transformers import Gemma4AssistantForCausalLM, Gemma4ForCausalLM

from pocketdraft.export.hf_compat import patch_transformers
from pocketdraft.export.pipeline import build
from pocketdraft.export.plan import Plan, Recipes
from pocketdraft.export.tiny import DRAFTER_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.quantize.recipe import load
from pocketdraft.runtime import litert_lm, terminal
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.text import Tokenizer

DRAFTS = 4
# Hidden size of the random pairs: 47 and 260 million parameters outside the embeddings.
LARGE = {"large": 640, "huge": 1536}
METHODS = ("pocketdraft", "LiteRT-LM", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", *LARGE), default="tiny")
    parser.add_argument("--recipe", default="w8")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    chosen = parser.parse_args()
    terminal.silence_native_code()
    torch.set_num_threads(1)
    patch_transformers()
    target_dir, drafter_dir = (
        random_pair(chosen.work / chosen.size, LARGE[chosen.size])
        if chosen.size in LARGE
        else (TARGET_DIR, DRAFTER_DIR)
    )
    bundle = chosen.work / f"{chosen.size}-{chosen.recipe}"
    with terminal.progress(quiet=False) as advance:
        if not bundle.exists():
            recipe = load(chosen.recipe)
            plan = Plan(target_dir, drafter_dir, bundle, Recipes(recipe, recipe, recipe), prefill=(64,), verify=(5,))
            build([plan], advance)
        texts = [prompt.text for prompt in read_prompts(PROMPTS_FILE, per_domain=2)]
        peers = (OwnPeer(bundle, texts, chosen.max_tokens), LiteRTLMPeer(bundle, texts, chosen.max_tokens))
        reference = TransformersPeer(target_dir, drafter_dir, bundle, texts, chosen.max_tokens)
        speeds: dict[tuple[str, bool], list[float]] = {}
        for repeat in range(chosen.repeats + 1):
            advance("Repeats", repeat, chosen.repeats + 1)
            for peer in (*peers, reference):
                for drafted in (False, True):
                    speed = peer.tokens_per_s(drafted)
                    if repeat:  # the first one warms up
                        speeds.setdefault((peer.name, drafted), []).append(speed)
    report(chosen, speeds, peers[0])


class OwnPeer:
    """This runtime: time of the rounds, without the prompt's prefill, as LiteRT-LM counts it."""

    name = "pocketdraft"

    def __init__(self, bundle: Path, texts: list[str], budget: int) -> None:
        self._job = {"bundle": str(bundle), "texts": texts, "budget": budget, "drafts": DRAFTS}

    def tokens_per_s(self, drafted: bool) -> float:
        found = self._run("mtp" if drafted else "none", instrumented=False)
        return found["tokens"] / found["seconds"]

    def outside(self) -> float:
        """Share of a drafted round that no graph call accounts for."""
        return statistics.median(self._run("mtp", instrumented=True)["outside"] for _ in range(3))

    def _run(self, drafter: str, instrumented: bool) -> dict[str, float]:
        job = self._job | {"drafter": drafter, "instrumented": instrumented}
        command = [sys.executable, str(Path(__file__).with_name("own_loop.py"))]
        child = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=True)
        return json.loads(child.stdout.splitlines()[-1])  # type: ignore[no-any-return]


class LiteRTLMPeer:
    name = "LiteRT-LM"

    def __init__(self, bundle: Path, texts: list[str], budget: int) -> None:
        self.file, self.texts, self.budget = bundle / "model.litertlm", texts, budget

    def tokens_per_s(self, drafted: bool) -> float:
        replies = litert_lm.run(self.file, self.texts, self.budget, drafted)
        return sum(replies.tokens) / sum(replies.decode_s)


class TransformersPeer:
    """Eager float32, with the prompt's prefill in its time: a peer for the loop's shape, not for its speed."""

    name = "transformers"

    def __init__(self, target: Path, drafter: Path, bundle: Path, texts: list[str], budget: int) -> None:
        self.model = Gemma4ForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        self.assistant = Gemma4AssistantForCausalLM.from_pretrained(drafter, dtype=torch.float32).eval()
        self.assistant.generation_config.num_assistant_tokens = DRAFTS
        self.assistant.generation_config.num_assistant_tokens_schedule = "constant"
        tokenizer = Tokenizer(bundle / "tokenizer.json", self.model.config.bos_token_id)
        self.prompts = [torch.tensor([tokenizer.encode(text)]) for text in texts[::4]]
        self.budget = budget

    def tokens_per_s(self, drafted: bool) -> float:
        options = {"assistant_model": self.assistant} if drafted else {}
        tokens, started = 0, time.perf_counter()
        for prompt in self.prompts:
            output = self.model.generate(prompt, max_new_tokens=self.budget, do_sample=False, pad_token_id=0, **options)
            tokens += output.shape[1] - prompt.shape[1]
        return tokens / (time.perf_counter() - started)


def report(chosen: argparse.Namespace, speeds: dict[tuple[str, bool], list[float]], ours: OwnPeer) -> None:
    table = Table(
        "loop",
        "plain tok/s",
        "drafted tok/s",
        "drafted / plain",
        "pocketdraft is",
        title=f"{chosen.size}, {chosen.recipe}",
    )
    outside = ours.outside()
    found: dict[str, Any] = {"size": chosen.size, "recipe": chosen.recipe, "outside": round(outside, 4)}
    for name in METHODS:
        plain, drafted = speeds[name, False], speeds[name, True]
        gain = statistics.median(b / a for a, b in zip(plain, drafted, strict=True))
        ratios = [
            statistics.median(a / b for a, b in zip(speeds["pocketdraft", d], speeds[name, d], strict=True))
            for d in (False, True)
        ]
        found[name] = {
            "plain_tokens_per_s": round(statistics.median(plain), 1),
            "drafted_tokens_per_s": round(statistics.median(drafted), 1),
            "drafted_over_plain": round(gain, 3),
            "pocketdraft_over_this": {"plain": round(ratios[0], 3), "drafted": round(ratios[1], 3)},
        }
        table.add_row(
            name,
            f"{statistics.median(plain):.0f}",
            f"{statistics.median(drafted):.0f}",
            f"{gain:.2f}x",
            f"{ratios[0]:.2f}x plain, {ratios[1]:.2f}x drafted",
        )
    Console().print(table)
    print(f"outside of graph calls: {outside:.1%} of a drafted round")
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
