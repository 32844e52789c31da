"""Acceptance of a DFlash drafter by draft length, position and domain, over transformers' modules: no bundle needed.

    python benchmarks/dflash.py [--target FOLDER] [--drafter FOLDER] [--drafts 1,2,4,8,15] [--max-tokens 128]

The target writes its texts once, greedily and at temperature 1. A round accepts the drafts that are the text's next
tokens, so one pass over a text tells what every round of every draft length accepts; a draft shorter than the block
is its first tokens. The tables are Markdown; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import Gemma4ForCausalLM, MuseGlimmerAssistantModel

from pocketdraft.export.tiny import DFLASH_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.export.tiny.train import load
from pocketdraft.export.tiny.train_dflash import accepted, tap
from pocketdraft.runtime.bench import NOVEL_TOKENS
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.stats import Stats
from pocketdraft.runtime.text import Tokenizer

NOVEL_DRAFTS = 4
POSITIONS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 15)


class Domain:
    def __init__(self) -> None:
        self.greedy: dict[int, Stats] = {}
        self.sampled = Stats()
        self.novel: list[int] = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=TARGET_DIR)
    parser.add_argument("--drafter", type=Path, default=DFLASH_DIR)
    parser.add_argument("--drafts", default="1,2,4,8,15")
    parser.add_argument("--max-tokens", type=int, default=128)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    target, drafter = load(Gemma4ForCausalLM, chosen.target), load(MuseGlimmerAssistantModel, chosen.drafter)
    tokenizer = Tokenizer(chosen.target / "tokenizer.json", target.config.bos_token_id)
    lengths = [int(number) for number in chosen.drafts.split(",")]
    budget: int = chosen.max_tokens
    domains: dict[str, Domain] = {}
    for prompt in read_prompts(PROMPTS_FILE):
        domain, start = domains.setdefault(prompt.domain, Domain()), tokenizer.encode(prompt.text)
        text = write(target, start, budget, {"do_sample": False})
        counts = reach(drafter, target, text, len(start))
        for length in {*lengths, NOVEL_DRAFTS}:
            stats = domain.greedy.setdefault(length, Stats())
            for at, proposed, count in rounds(counts, budget, length):
                stats.outcomes[proposed, count] += 1
                if length == NOVEL_DRAFTS and is_novel(text, len(start) + at + 1):
                    domain.novel.append(count)
        text = write(target, start, budget, {"do_sample": True, "temperature": 1.0, "top_k": 0})
        for _, proposed, count in rounds(reach(drafter, target, text, len(start)), budget, NOVEL_DRAFTS):
            domain.sampled.outcomes[proposed, count] += 1
    report(domains, lengths)


def write(target: Gemma4ForCausalLM, prompt: list[int], budget: int, how: dict[str, Any]) -> list[int]:
    """The prompt and what the target writes after it."""
    return target.generate(torch.tensor([prompt]), max_new_tokens=budget, **how)[0].tolist()


def reach(drafter: MuseGlimmerAssistantModel, target: Gemma4ForCausalLM, text: list[int], prompt: int) -> list[int]:
    """Of a block behind each token after the prompt, how many drafts are the text's next tokens."""
    padded = pad(torch.tensor([text]), (0, drafter.config.block_size))
    anchors = torch.arange(prompt, len(text))
    return accepted(drafter, tap(target, padded, drafter.config.target_layer_ids), anchors)[0].tolist()


def rounds(counts: list[int], budget: int, drafts: int) -> Iterator[tuple[int, int, int]]:
    """Of each round: the pending token's index in the output, how many drafts were proposed and accepted."""
    at = 0
    while at < len(counts) - 1:
        proposed = min(drafts, budget - 1 - at, len(counts) - 1 - at)
        count = min(counts[at], proposed)
        yield at, proposed, count
        at += count + 1


def is_novel(text: list[int], at: int) -> bool:
    """Whether the tokens from `at` on had not occurred before, as `runtime.bench` counts it."""
    coming = text[at : at + NOVEL_TOKENS]
    earlier = (text[i : i + NOVEL_TOKENS] for i in range(at))
    return len(coming) == NOVEL_TOKENS and coming not in earlier


def report(domains: dict[str, Domain], lengths: list[int]) -> None:
    print(f"| domain | greedy K={'/'.join(map(str, lengths))} | K=4, novel only | T=1, K=4 |")
    print("| --- | --- | --- | --- |")
    found = {}
    for name, domain in domains.items():
        greedy = [domain.greedy[length].accepted_per_round for length in lengths]
        novel, sampled = sum(domain.novel) / len(domain.novel), domain.sampled.accepted_per_round
        print(f"| {name} | {' / '.join(f'{mean:.2f}' for mean in greedy)} | {novel:.2f} | {sampled:.2f} |")
        found[name] = {
            "greedy": {length: round(mean, 3) for length, mean in zip(lengths, greedy, strict=True)},
            "by_position": [round(share, 3) for share in domain.greedy[max(lengths)].acceptance_by_position()],
            "novel": round(novel, 3),
            "sampled": round(sampled, 3),
        }
    print(f"\n| domain | {' | '.join(map(str, POSITIONS))} |")
    print(f"| {' | '.join(['---'] * (1 + len(POSITIONS)))} |")
    for name, row in found.items():
        shares = dict(enumerate(row["by_position"], 1))
        print(
            f"| {name} | {' | '.join(f'{shares[k]:.2f}'.removeprefix('0') if k in shares else '' for k in POSITIONS)} |"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
