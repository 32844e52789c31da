"""What the embedded target's exits say, held against its last layer: the figures of the model card.

    python benchmarks/exits.py [--max-tokens 128] [--exits FOLDER]

Agreement: the share of greedy text in which an exit's argmax is the last layer's; "none" is the final norm and the
head on the state as it is. Acceptance: mean accepted drafts a round where the first layers and an exit draft (the
target's own token is not counted), on greedy text, in the rounds of it whose next four tokens had not occurred before,
and on text drawn at temperature 1, where a greedy draft stands if it equals the draw. Drafting layers run on K/V of
their own that are the target's, so a draft is right or wrong by its context alone: the rounds are replayed from one
pass over the text. The tables are Markdown; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import Gemma4ForCausalLM

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.drafting import load_drafter
from pocketdraft.export.families import make_target
from pocketdraft.export.hf_compat import patch_transformers
from pocketdraft.export.stored import load as load_weights
from pocketdraft.export.tiny import EXITS_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.export.tiny.train import load
from pocketdraft.export.tiny.train_exits import exit_logits, teach
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.text import Tokenizer

DRAFTS = (1, 2, 4, 8)
NOVEL = 4  # tokens

Matches = npt.NDArray[np.bool_]


def rounds(tokens: Sequence[int], matches: Matches, prompt: int, drafts: int) -> tuple[list[int], list[int]]:
    """Accepted drafts by round, and of the novel rounds alone.

    `matches` [T - 1]: whether the draft after token i is token i + 1. A round starts at the last token that is out.
    """
    accepted, novel, at = [], [], prompt - 1
    while (left := len(tokens) - 1 - at) > 1:  # the last token needs no draft
        ahead = matches[at : at + min(drafts, left - 1)]
        count = len(ahead) if ahead.all() else int(ahead.argmin())
        accepted.append(count)
        coming = tokens[at + 1 : at + 1 + NOVEL]
        before = tokens[: at + NOVEL]
        if len(coming) == NOVEL and not any(before[i : i + NOVEL] == coming for i in range(len(before) - NOVEL + 1)):
            novel.append(count)
        at += count + 1
    return accepted, novel


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--exits", type=Path, default=EXITS_DIR)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    patch_transformers()
    target = load(Gemma4ForCausalLM, TARGET_DIR)
    exits, places = load_drafter(Checkpoint.open(chosen.exits), make_target(target.config))
    load_weights(places, exits)
    tokenizer = Tokenizer(TARGET_DIR / "tokenizer.json", target.config.bos_token_id)
    agreement: dict[tuple[int, str, str], list[float]] = defaultdict(list)
    sure: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    accepted: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    torch.manual_seed(0)
    prompts = read_prompts(PROMPTS_FILE)
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt.text)])
        length = ids.shape[1]
        options = {"max_new_tokens": chosen.max_tokens, "pad_token_id": 0}
        texts = {
            "greedy": target.generate(ids, do_sample=False, **options),
            "T=1": target.generate(ids, do_sample=True, temperature=1.0, top_k=0, **options),
        }
        for kind, text in texts.items():
            states, wanted = teach(target, text)
            last, tokens = wanted[0, :-1].argmax(-1), text[0].tolist()
            for cut in exits.cuts:
                for name, each in (("none", None), ("exit", exits.after(cut))):
                    choice = exit_logits(target, each, states[cut])[0, :-1].argmax(-1)
                    if kind == "greedy":
                        agreement[cut, prompt.domain, name] += (choice == last)[length - 1 :].tolist()
                matches = (choice == text[0, 1:]).numpy()
                for drafts in DRAFTS if kind == "greedy" else (4,):
                    every, novel = rounds(tokens, matches, length, drafts)
                    accepted[cut, prompt.domain, f"{kind} {drafts}"] += every
                    if kind == "greedy" and drafts == 4:
                        accepted[cut, prompt.domain, "novel"] += novel
                if kind == "greedy":
                    score = exits.after(cut).score(states[cut])[0, length - 1 : -1]
                    sure[cut] += zip((score > 0).tolist(), (choice == last)[length - 1 :].tolist(), strict=True)
    domains = list(dict.fromkeys(prompt.domain for prompt in prompts))
    print(f"| exit after | {' | '.join(domains)} | classifier right |\n|" + " --- |" * (len(domains) + 2))
    for cut in exits.cuts:
        cells = [[np.mean(agreement[cut, domain, name]) for name in ("none", "exit")] for domain in domains]
        right = np.mean([said == is_so for said, is_so in sure[cut]])
        print(f"| {cut} | {' | '.join(f'{none:.2f} -> {own:.2f}' for none, own in cells)} | {right:.2f} |")
    greedy = "/".join(map(str, DRAFTS))
    print(f"\n| exit after | domain | greedy K={greedy} | K=4, novel only | T=1, K=4 |\n|" + " --- |" * 5)
    for cut in exits.cuts:
        for domain in domains:
            cells = [np.mean(accepted[cut, domain, f"greedy {drafts}"]) for drafts in DRAFTS]
            novel, sampled = (np.mean(accepted[cut, domain, kind]) for kind in ("novel", "T=1 4"))
            row = " / ".join(f"{mean:.2f}" for mean in cells)
            print(f"| {cut} | {domain} | {row} | {novel:.2f} | {sampled:.2f} |")
    found = {
        "agreement": {" ".join(map(str, key)): round(float(np.mean(own)), 4) for key, own in agreement.items()},
        "accepted": {" ".join(map(str, key)): round(float(np.mean(own)), 4) for key, own in accepted.items()},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
