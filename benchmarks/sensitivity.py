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

from rich.console import Console
from rich.table import Table

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.sensitivity import Reader, cost
from pocketdraft.export.step import all_weights
from pocketdraft.export.tiny import PROMPTS_FILE, TARGET_DIR
from pocketdraft.quantize.recipe import Rule
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.text import Tokenizer

WIDTH = 48
RULES = (Rule(weights="*", dtype="int8"), Rule(weights="*", dtype="int4"), Rule(weights="*", dtype="int4", block=32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=TARGET_DIR)
    checkpoint = Checkpoint.open(parser.parse_args().target)
    steps = Reader.steps_of(checkpoint)
    reader, weights = Reader(steps), all_weights(steps)
    tokenizer = Tokenizer(checkpoint.tokenizer_file, checkpoint.text_config.bos_token_id)
    texts = [tokenizer.encode(prompt.text)[:WIDTH] for prompt in read_prompts(PROMPTS_FILE, 4)]
    wanted = reader.log_probabilities(texts)
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in weights:
        kinds[name if name.endswith(".table") else name.rpartition(".")[2]].append(name)
    found = {}
    for kind, names in kinds.items():
        count = sum(weights[name].weight.numel() for name in names)
        own = {name: weights[name] for name in names}
        columns = own[names[0]].weight.shape[1]
        # A row shorter than a block has one scale, as a channel would.
        rules = [RULES[1] if columns % (rule.block or 1) else rule for rule in RULES]
        costs = [cost(reader, own, rule, texts, wanted) for rule in rules]
        found[kind] = {"weights": count, "int8": costs[0], "int4": costs[1], "int4_block_32": costs[2]}
    report(found)


def report(found: dict[str, dict[str, float]]) -> None:
    table = Table(
        "kind", "weights", "int8", "int4", "int4, block 32", "int4 per 100k weights", title="KL, nats a token"
    )
    rate = {kind: own["int4"] / own["weights"] * 1e5 for kind, own in found.items()}
    for kind in sorted(found, key=lambda kind: -rate[kind]):
        own = found[kind]
        cells = (f"{own[name]:.1e}" for name in ("int8", "int4", "int4_block_32"))
        table.add_row(kind, f"{own['weights']:,.0f}", *cells, f"{rate[kind]:.1e}")
    Console().print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
