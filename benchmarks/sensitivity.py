"""What int8 and int4 cost, one kind of weight at a time: KL from the float target, and per 100,000 weights.

    python benchmarks/sensitivity.py [--target DIR]

Only the named kind is rounded, everything else stays float, and the text is the benchmark's prompts. The kinds
that cost most per weight are those that `w4` keeps at int8. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.kv_layout import KVLayout
from pocketdraft.export.models.gemma4 import load_target
from pocketdraft.export.step import Plain, Step, all_weights
from pocketdraft.export.steps.target import embedder_steps, target_steps
from pocketdraft.export.stored import load
from pocketdraft.export.tiny import PROMPTS_FILE, TARGET_DIR
from pocketdraft.quantize.recipe import Rule
from pocketdraft.quantize.weights import round_trip
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.text import Tokenizer

WIDTH = 48
RULES = (Rule(weights="*", dtype="int8"), Rule(weights="*", dtype="int4"), Rule(weights="*", dtype="int4", block=32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=TARGET_DIR)
    checkpoint = Checkpoint.open(parser.parse_args().target)
    target, places = load_target(checkpoint)
    load(places, target)
    layout = KVLayout.of(target.geometry, WIDTH)
    steps = [*target_steps(target, layout, (), (WIDTH,), Plain()), *embedder_steps(target)]
    tokenizer = Tokenizer(checkpoint.tokenizer_file, checkpoint.text_config.bos_token_id)
    texts = [tokenizer.encode(prompt.text)[:WIDTH] for prompt in read_prompts(PROMPTS_FILE, 4)]
    texts = [text for text in texts if len(text) == WIDTH]
    reference = log_probabilities(steps, texts)
    weights = all_weights(steps)
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in weights:
        kinds[name if name.endswith(".table") else name.rpartition(".")[2]].append(name)
    found = {}
    for kind, names in kinds.items():
        count = sum(weights[name].weight.numel() for name in names)
        costs = []
        for rule in RULES:
            kept = {name: weights[name].weight for name in names}
            for name in names:
                # A row shorter than a block has one scale, as a channel would.
                fitting = rule if kept[name].shape[1] % (rule.block or 1) == 0 else RULES[1]
                rounded = torch.from_numpy(round_trip(kept[name].detach().numpy(), fitting))
                weights[name].weight = torch.nn.Parameter(rounded, requires_grad=False)
            costs.append(divergence(reference, log_probabilities(steps, texts)))
            for name in names:
                weights[name].weight = kept[name]
        found[kind] = {"weights": count, "int8": costs[0], "int4": costs[1], "int4_block_32": costs[2]}
    report(found)


@torch.no_grad()
def log_probabilities(steps: list[Step], texts: list[list[int]]) -> Tensor:
    """[texts * WIDTH, V]"""
    by_role = {step.spec.role: step for step in steps}
    rows = []
    for text in texts:
        ids = torch.tensor([text], dtype=torch.int32)
        feed = by_role["verify"].sample_inputs()
        feed["embeddings"] = by_role["embed"].module(token_ids=ids)["embeddings"]
        if "embed_per_layer" in by_role:
            feed["per_layer_embeddings"] = by_role["embed_per_layer"].module(token_ids=ids)["embeddings"]
        feed["input_pos"] = torch.arange(WIDTH, dtype=torch.int32)
        feed["mask"] = torch.ones(WIDTH, WIDTH, dtype=torch.bool).tril()[None, None]
        rows.append(by_role["verify"].module(**feed)["logits"][0].log_softmax(-1))
    return torch.cat(rows)


def divergence(reference: Tensor, other: Tensor) -> float:
    return float((reference.exp() * (reference - other)).sum(-1).mean())


def report(found: dict[str, dict[str, float]]) -> None:
    table = Table(
        "kind", "weights", "int8", "int4", "int4, block 32", "int4 per 100k weights", title="KL, nats a token"
    )
    rate = {kind: cost["int4"] / cost["weights"] * 1e5 for kind, cost in found.items()}
    for kind in sorted(found, key=lambda kind: -rate[kind]):
        cost = found[kind]
        cells = (f"{cost[name]:.1e}" for name in ("int8", "int4", "int4_block_32"))
        table.add_row(kind, f"{cost['weights']:,.0f}", *cells, f"{rate[kind]:.1e}")
    Console().print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
