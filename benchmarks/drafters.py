"""Acceptance of the embedded target's MTP drafter, native head and independent draft model, by draft length and domain.

    python benchmarks/drafters.py [--heads FOLDER] [--draft-model FOLDER] [--drafts 1,2,4,8]

In float32 torch, without a bundle: the target writes 128 tokens after each prompt, greedily and at temperature 1, and
each drafter's rounds over that text are counted as the draft-verify loop makes them (`export/distil.py`). At
temperature 1 a greedy draft stands if it equals the token that was drawn. Then transformers' assisted generation
with the draft model, greedy. The tables are Markdown; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Gemma4AssistantForCausalLM, Gemma4ForCausalLM
from transformers.generation.streamers import BaseStreamer

from pocketdraft.export import distil
from pocketdraft.export import heads as mtp_heads
from pocketdraft.export.adapt import NEW_TOKENS
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.distil import Teacher, count_rounds, teach
from pocketdraft.export.hf_compat import patch_transformers
from pocketdraft.export.tiny import DRAFT_MODEL_DIR, DRAFTER_DIR, MTP_HEADS_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.export.tiny import train_draft_model as draft_model
from pocketdraft.export.tiny.train import load
from pocketdraft.export.written import Writer
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.stats import Stats
from pocketdraft.runtime.text import Tokenizer

NAMES = {"mtp": "MTP drafter", "head": "native head", "draft_model": "draft model"}
Counts = Callable[[Teacher, int], list[int]]  # of every anchor of a text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=Path, default=MTP_HEADS_DIR)
    parser.add_argument("--draft-model", type=Path, default=DRAFT_MODEL_DIR)
    parser.add_argument("--drafts", default="1,2,4,8")
    parser.add_argument("--per-domain", type=int, default=16)
    parser.add_argument("--assisted", type=int, default=4, help="prompts a domain for transformers' own loop")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    patch_transformers()
    lengths = [int(number) for number in chosen.drafts.split(",")]
    target, small = load(Gemma4ForCausalLM, TARGET_DIR), load(Gemma4ForCausalLM, chosen.draft_model)
    measured = drafters(load(Gemma4AssistantForCausalLM, DRAFTER_DIR), mtp_heads.load_head(chosen.heads), small)
    tokens = Checkpoint.open(TARGET_DIR).tokens()
    tokenizer = Tokenizer(TARGET_DIR / "tokenizer.json", tokens.bos)
    by_domain: dict[str, list[list[int]]] = {}
    for prompt in read_prompts(PROMPTS_FILE, chosen.per_domain):
        by_domain.setdefault(prompt.domain, []).append(tokenizer.encode(prompt.text))
    writer = Writer(target, target.config.max_position_embeddings, NEW_TOKENS, tokens.stop)

    found: dict[str, Any] = {}
    for domain, prompts in by_domain.items():
        torch.manual_seed(0)
        for mode, sampled in (("greedy", False), ("sampled", True)):
            texts = writer.write(prompts, sampled, time.monotonic() + 3600)
            for name, count in measured.items():
                stats = {k: Stats() for k in lengths}
                for text in texts:
                    counts = count(teach(target, text.tokens[None]), max(lengths))[text.prompt - 1 :]
                    for k, rounds in stats.items():
                        count_rounds([min(n, k) for n in counts], text.prompt, text.budget, k, rounds)
                found.setdefault(domain, {}).setdefault(mode, {})[name] = {
                    "accepted": {k: round(rounds.accepted_per_round, 3) for k, rounds in stats.items()},
                    "conditional": [
                        round(share, 3) for share in stats[max(lengths)].conditional_acceptance_by_position()
                    ],
                }
        found[domain]["assisted"] = assisted(target, small, prompts[: chosen.assisted], 4)
    show(found, lengths)
    print(json.dumps(found))


class Rounds(BaseStreamer):
    """Counts the drafts of each round that generation accepts: it streams the prompt, then round by round."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self._started = False

    def put(self, value: torch.Tensor) -> None:
        if self._started:
            self.accepted.append(value.numel() - 1)
        self._started = True

    def end(self) -> None:
        self._started = False


def assisted(target: Any, small: Any, prompts: list[list[int]], drafts: int) -> dict[str, float]:
    """transformers' own loop: accepted drafts a round, and for how many prompts its tokens are plain generation's."""
    config = small.generation_config
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = drafts, "constant"
    config.assistant_confidence_threshold = 0.0
    rounds, identical = Rounds(), 0
    for prompt in map(torch.tensor, prompts):
        plain, written = (
            target.generate(prompt[None], do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0, **options)
            for options in ({}, {"assistant_model": small, "streamer": rounds})
        )
        identical += plain.tolist() == written.tolist()
    mean = sum(rounds.accepted) / len(rounds.accepted)
    return {"accepted": round(mean, 3), "identical": identical, "prompts": len(prompts)}


def drafters(mtp: Any, head: Any, small: Any) -> dict[str, Counts]:
    def of_mtp(teacher: Teacher, drafts: int) -> list[int]:
        length = teacher.tokens.shape[1]
        padded = Teacher(
            teacher.target, torch.nn.functional.pad(teacher.tokens, (0, drafts)), teacher.hidden, teacher.kv
        )
        return distil.accepted(mtp, padded, drafts, torch.arange(length - 1))[0].tolist()

    return {
        "mtp": of_mtp,
        "head": lambda teacher, drafts: mtp_heads.accepted(head, teacher, drafts)[0].tolist(),
        "draft_model": lambda teacher, drafts: draft_model.accepted(small, teacher.tokens, drafts)[0].tolist(),
    }


def show(found: dict[str, Any], lengths: list[int]) -> None:
    for mode in ("greedy", "sampled"):
        print(f"\n| {mode}, K={'/'.join(map(str, lengths))} | {' | '.join(NAMES.values())} |")
        print("| --- | --- | --- | --- |")
        for domain, by_mode in found.items():
            cells = (by_mode[mode][name]["accepted"].values() for name in NAMES)
            print(f"| {domain} | {' | '.join(' / '.join(f'{x:.2f}' for x in cell) for cell in cells)} |")
    print(f"\n| conditional, greedy | {' | '.join(NAMES.values())} |\n| --- | --- | --- | --- |")
    for domain, by_mode in found.items():
        cells = (by_mode["greedy"][name]["conditional"] for name in NAMES)
        print(f"| {domain} | {' | '.join(' '.join(f'{x:.2f}' for x in cell) for cell in cells)} |")
    print("\n| assisted generation, greedy, K=4 | accepted | same as plain |\n| --- | --- | --- |")
    for domain, by_mode in found.items():
        of = by_mode["assisted"]
        print(f"| {domain} | {of['accepted']:.2f} | {of['identical']} of {of['prompts']} |")


if __name__ == "__main__":
    main()
