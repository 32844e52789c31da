"""The adaptive controller against the best fixed length of each domain, on devices that are made up.

    python benchmarks/controller.py BUNDLE [--per-domain 12]

Drafts are surveyed on the bundle, once; rounds are then played on paper, with the times of each device: a verify's by
width and a draft's, over one decoding. Texts of the domains come in turn, and the controller learns from one to the
next, as in one process. A fixed length may be another for each domain, which nobody could know beforehand. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pocketdraft.export.tiny import PROMPTS_FILE
from pocketdraft.runtime.benchmark import Task, open_cold, survey_all
from pocketdraft.runtime.cost import RoundCost, Times
from pocketdraft.runtime.draft_length import Confident, Fixed
from pocketdraft.runtime.experience import Experience
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.survey import Surveyed, play

WIDTHS = (1, 2, 3, 5, 9)
DEVICES = {
    "memory-bound": RoundCost(tuple((width, 1.0 if width == 1 else 1.1 + 0.02 * width) for width in WIDTHS), 0.1),
    "a step at 9": RoundCost(((1, 1.0), (2, 1.3), (3, 1.35), (5, 1.4), (9, 2.6)), 0.12),
    "half arithmetic": RoundCost(tuple((width, 0.7 + 0.3 * width) for width in WIDTHS), 0.08),
    "a dear drafter": RoundCost(((1, 1.0), (2, 1.05), (3, 1.05), (5, 1.1), (9, 1.2)), 0.4),
    # As the embedded pair's rounds are on ONNX Runtime, measured: drafting pays on JSON only.
    "hardly pays": RoundCost(((1, 1.0), (2, 1.27), (3, 1.47), (5, 1.8), (9, 3.2)), 0.58, 0.0, 0.12),
    "slow verify": RoundCost(tuple((width, float(width)) for width in WIDTHS), 0.05),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--per-domain", type=int, default=12)
    chosen = parser.parse_args()
    task = Task(read_prompts(PROMPTS_FILE, chosen.per_domain), max_tokens=96, threads=1)
    opened = open_cold(chosen.bundle, 1, task.prompts[0])
    texts = survey_all(opened, task, "mtp", WIDTHS[-1] - 1, lambda *_: None)
    found = {name: compare(texts, cost) for name, cost in DEVICES.items()}
    table = Table("device", *texts, title="best fixed length: the controller's tokens/s over its")
    for name, row in found.items():
        table.add_row(name, *(f"{length}: {ratio:.2f}x" for length, ratio in row.values()))
    Console(width=100).print(table)
    print(json.dumps(found))


def compare(texts: dict[str, list[Surveyed]], cost: RoundCost) -> dict[str, tuple[int, float]]:
    """By domain, the best fixed length and the controller's tokens/s over its."""
    experience = Experience(Times([]))
    seconds, tokens = dict.fromkeys(texts, 0.0), dict.fromkeys(texts, 0)
    for group in zip(*texts.values(), strict=True):
        for domain, text in zip(texts, group, strict=True):
            policy = Confident(cost=cost).starting_from(experience)
            policy.begin(text.prompt)
            played = play([text], policy, cost, policy)
            seconds[domain] += played.seconds
            tokens[domain] += played.stats.emitted
    found = {}
    for domain, surveyed in texts.items():
        speeds = [play(surveyed, Fixed(drafts), cost).tokens_per_s for drafts in range(cost.longest + 1)]
        best = max(range(len(speeds)), key=lambda drafts: speeds[drafts])
        found[domain] = (best, round(tokens[domain] / seconds[domain] / speeds[best], 3))
    return found


if __name__ == "__main__":
    main()
