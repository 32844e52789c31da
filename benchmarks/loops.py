"""The loops of one pair: this runtime's on its backends, LiteRT-LM's, transformers' and onnxruntime-genai's.

    python benchmarks/loops.py [--size tiny|large|huge] [--recipe f32] [--backends litert,executorch,onnx] [--peers ...]

Every repeat runs all of them in turn, plain and drafted, on the same prompts and with one thread, so that noise hits
them alike; what is reported are medians, and medians of the ratios within a repeat. "large" and "huge" are pairs of
the same shape with random weights (nothing is accepted, every round is refused at its first draft), made on the spot.
transformers runs float32 whatever the recipe.

The physics: a round costs one verify and K draft calls, whatever runs the loop. What a loop adds is the host's
work between graph calls, shown as `outside`, the share of a drafted round that no graph call accounts for.

`same` counts the prompts whose tokens, plain and drafted, are those of the first loop; where float32 differs, the
margin of the logits tells a near-tie from a fault. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from genai_graphs import write_graphs, written
from pairs import random_pair
from peers import GenAIPeer, LiteRTLMPeer, OwnPeer, Peer, Prompts, Run, TransformersPeer
from rich.console import Console
from rich.table import Column, Table

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.hf_compat import patch_transformers
from pocketdraft.export.isolated import build_isolated
from pocketdraft.export.plan import Plan, Progress, Recipes
from pocketdraft.export.tiny import DRAFTER_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.quantize.recipe import load
from pocketdraft.runtime import litert_lm, terminal
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.text import Tokenizer

CONTEXT = 256
# Hidden size of the random pairs: 47 and 260 million parameters outside the embeddings.
LARGE = {"large": 640, "huge": 1536}
PEERS = ("litert-lm", "transformers", "transformers-compiled", "onnxruntime-genai")
# By peer, what plain and drafted runs gave, a repeat after the other.
Runs = dict[str, dict[bool, list[Run]]]


def main() -> None:
    chosen = arguments()
    terminal.silence_native_code()
    torch.set_num_threads(1)
    patch_transformers()
    pair = (
        random_pair(chosen.work / chosen.size, LARGE[chosen.size])
        if chosen.size in LARGE
        else (TARGET_DIR, DRAFTER_DIR)
    )
    tokenizer = Tokenizer(pair[0] / "tokenizer.json", Checkpoint.open(pair[0]).tokens().bos)
    texts = [prompt.text for prompt in read_prompts(PROMPTS_FILE, chosen.prompts)]
    prompts = Prompts(texts, [tokenizer.encode(text) for text in texts], chosen.max_tokens)
    with terminal.progress(quiet=False) as advance:
        peers = open_peers(chosen, pair, prompts, advance)
        runs = measure(peers, chosen.repeats, advance)
    print_differences(runs, prompts, tokenizer, TransformersPeer(*pair, prompts, compiled=False))
    ours = next((peer for peer in peers if peer.name == "pocketdraft litert"), None)
    report(chosen, runs, tokenizer, ours.outside() if isinstance(ours, OwnPeer) else None)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", *LARGE), default="tiny")
    parser.add_argument("--recipe", default="f32")
    parser.add_argument("--backends", default="litert,executorch,onnx")
    parser.add_argument("--peers", default=",".join(PEERS), help="may be empty")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=1, help="a domain")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    chosen = parser.parse_args()
    chosen.peers = {name for name in chosen.peers.split(",") if name}
    unknown = chosen.peers - set(PEERS)
    if unknown:
        parser.error(f"there are no peers {', '.join(sorted(unknown))}; give some of {', '.join(PEERS)}")
    if "onnxruntime-genai" in chosen.peers and not GenAIPeer.installed():
        print("onnxruntime-genai is not installed and is left out; the extra `bench` brings it.")
        chosen.peers.remove("onnxruntime-genai")
    return chosen


def open_peers(chosen: argparse.Namespace, pair: tuple[Path, Path], prompts: Prompts, advance: Progress) -> list[Peer]:
    """Makes what bundles and graphs are not there yet. The first peer is the one that all are compared with."""
    recipe = load(chosen.recipe)
    recipes = Recipes(recipe, recipe, recipe)
    target, drafter = pair
    peers: list[Peer] = []
    for backend in chosen.backends.split(","):
        bundle = chosen.work / f"{chosen.size}-{chosen.recipe}-{backend}"
        if not bundle.exists():
            plan = Plan(target, (drafter,), bundle, recipes, backend, context=CONTEXT, prefill=(64,), verify=(5,))
            build_isolated([plan], advance)
        peers.append(OwnPeer(backend, bundle, prompts))
        if backend == "litert" and "litert-lm" in chosen.peers:
            peers.append(LiteRTLMPeer(bundle, prompts))
    for name in ("transformers", "transformers-compiled"):
        if name in chosen.peers:
            peers.append(TransformersPeer(target, drafter, prompts, compiled=name != "transformers"))
    if "onnxruntime-genai" in chosen.peers:
        folder = chosen.work / f"{chosen.size}-{chosen.recipe}-genai"
        if not written(folder):
            advance("Exporting for onnxruntime-genai", 0, 1)
            write_graphs((Checkpoint.open(pair[0]), Checkpoint.open(pair[1])), recipes, CONTEXT, folder)
        peers.append(GenAIPeer(folder, prompts))
    return peers


def measure(peers: list[Peer], repeats: int, advance: Progress) -> Runs:
    runs: Runs = {peer.name: {False: [], True: []} for peer in peers}
    for repeat in range(repeats + 1):
        for peer in peers:
            advance(f"Repeats: {peer.name}", repeat, repeats + 1)
            for drafted, kept in runs[peer.name].items():
                run = peer.run(drafted)
                if repeat:  # the first one warms up
                    kept.append(run)
    return runs


def same(ours: list[int], theirs: list[int] | str, tokenizer: Tokenizer) -> bool:
    return litert_lm.same_text(tokenizer.decode(ours), theirs) if isinstance(theirs, str) else ours == theirs


def expected(runs: Runs) -> list[list[int]]:
    """What the first loop gave without drafting."""
    return next(iter(runs.values()))[False][0].outputs  # type: ignore[return-value]


def count_same(runs: dict[bool, list[Run]], ours: list[list[int]], tokenizer: Tokenizer) -> int:
    """Prompts of which plain and drafted output are ours."""
    outputs = zip(ours, runs[False][0].outputs, runs[True][0].outputs, strict=True)
    return sum(same(own, plain, tokenizer) and same(own, drafted, tokenizer) for own, plain, drafted in outputs)


def print_differences(runs: Runs, prompts: Prompts, tokenizer: Tokenizer, judge: TransformersPeer) -> None:
    for name, by_kind in runs.items():
        for drafted, (first, *_) in by_kind.items():
            outputs = zip(prompts.tokens, expected(runs), first.outputs, strict=True)
            for index, (prompt, own, theirs) in enumerate(outputs):
                if not same(own, theirs, tokenizer):
                    kind = "drafted" if drafted else "plain"
                    print(f"{name}, {kind}, prompt {index}: {difference(prompt, own, theirs, judge)}")


def difference(prompt: list[int], own: list[int], theirs: list[int] | str, judge: TransformersPeer) -> str:
    if isinstance(theirs, str):
        return "another text"
    place = next((i for i, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b), None)
    if place is None:
        return f"{len(theirs)} tokens where {len(own)} were expected"
    margin = judge.margin([*prompt, *own[: place + 1]], theirs[place])
    return f"token {place} is another, whose logit in float32 is {margin:.1e} lower"


def report(chosen: argparse.Namespace, runs: Runs, tokenizer: Tokenizer, outside: float | None) -> None:
    first = next(iter(runs))
    table = Table(
        Column("loop", no_wrap=True),
        "plain tok/s",
        "drafted tok/s",
        "drafted / plain",
        "accepted",
        "over it, plain",
        "over it, drafted",
        "same",
        title=f"{chosen.size}, {chosen.recipe}, {chosen.repeats} repeats; over it: {first} by this loop",
    )
    speeds = {name: {kind: [run.tokens_per_s for run in kept] for kind, kept in r.items()} for name, r in runs.items()}
    found: dict[str, Any] = {"size": chosen.size, "recipe": chosen.recipe, "outside": outside, "loops": {}}
    for name, by_kind in runs.items():
        plain, drafted = speeds[name][False], speeds[name][True]
        gain = ratio(drafted, plain)
        ours_over = [ratio(speeds[first][kind], speeds[name][kind]) for kind in (False, True)]
        accepted, agreed = by_kind[True][0].accepted, count_same(by_kind, expected(runs), tokenizer)
        found["loops"][name] = {
            "plain_tokens_per_s": round(statistics.median(plain), 1),
            "drafted_tokens_per_s": round(statistics.median(drafted), 1),
            "drafted_over_plain": round(gain, 3),
            "accepted_per_round": accepted,
            "first_over_this": {"plain": round(ours_over[0], 3), "drafted": round(ours_over[1], 3)},
            "same": agreed,
            "prompts": len(expected(runs)),
        }
        table.add_row(
            name,
            f"{statistics.median(plain):.0f}",
            f"{statistics.median(drafted):.0f}",
            f"{gain:.2f}x",
            "" if accepted is None else f"{accepted:.2f}",
            *(f"{over:.2f}x" for over in ours_over),
            f"{agreed} of {len(expected(runs))}",
        )
    Console(width=120).print(table)
    if outside is not None:
        print(f"outside of graph calls: {outside:.1%} of a drafted round")
    print(json.dumps(found))


def ratio(a: list[float], b: list[float]) -> float:
    """Median of the ratios within a repeat."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


if __name__ == "__main__":
    sys.exit(main())
