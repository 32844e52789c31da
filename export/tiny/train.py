"""Trains the embedded target and its drafters from nothing: about two hours on one CPU core.

    python -m pocketdraft.export.tiny.train --work build/tiny --botocore botocore-1.44.5-py3-none-any.whl

Every step leaves a file in --work and is skipped if the file is there. The result goes to `--out`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import (
    Gemma4AssistantForCausalLM,
    Gemma4ForCausalLM,
    MuseGlimmerAssistantModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ..heads import save_head
from ..hf_compat import patch_transformers
from . import HERE
from .configs import mtp_heads_config
from .corpus import DOMAINS, LICENCES, SOURCES, build_corpus, encode, train_tokenizer
from .train_dflash import train_dflash
from .train_draft_model import train_draft_model
from .train_drafter import add_centroid_head, train_drafter
from .train_mtp_heads import train_mtp_head
from .train_target import train_target, write_text
from .training import Batches

PROMPTS_A_DOMAIN = 16
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--botocore", type=Path, required=True, help="the wheel, for the json texts")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--target-steps", type=int, default=1500)
    parser.add_argument("--drafter-steps", type=int, default=1000)
    parser.add_argument("--head-steps", type=int, default=2000)
    parser.add_argument("--draft-model-steps", type=int, default=2900)
    parser.add_argument("--dflash-steps", type=int, default=3500)
    parser.add_argument("--texts", type=int, default=1536)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    patch_transformers()
    work: Path = chosen.work
    work.mkdir(parents=True, exist_ok=True)

    if not (work / "tokenizer.json").exists():
        prepare(work, chosen.botocore)
    training, held_out = Batches(work, "training", 0), Batches(work, "held_out", 1)
    if not (work / "target").exists():
        train_target(training, held_out, chosen.target_steps).save_pretrained(work / "target")
    target = load(Gemma4ForCausalLM, work / "target")
    if not (work / "written.pt").exists():
        torch.save(write_text(target, Batches(work, "training", 11), chosen.texts), work / "written.pt")
    written = torch.load(work / "written.pt")
    if not (work / "dense").exists():
        train_drafter(target, Batches(work, "training", 7), written, chosen.drafter_steps).save_pretrained(
            work / "dense"
        )
    dense = load(Gemma4AssistantForCausalLM, work / "dense")
    if not (work / "mtp_heads").exists():
        head = train_mtp_head(target, Batches(work, "training", 17), written, chosen.head_steps)
        save_head(head, mtp_heads_config(target.config), work / "mtp_heads")
    if not (work / "draft_model").exists():
        train_draft_model(target, Batches(work, "training", 13), written, chosen.draft_model_steps).save_pretrained(
            work / "draft_model"
        )
    small = load(Gemma4ForCausalLM, work / "draft_model")
    drafter = add_centroid_head(target, dense, Batches(work, "training", 21), written, 100)
    if not (work / "dflash").exists():
        train_dflash(target, Batches(work, "training", 7), written, chosen.dflash_steps).save_pretrained(
            work / "dflash"
        )
    for assistant in (drafter, small):
        assistant.generation_config.num_assistant_tokens = 4
    publish({"target": target, "drafter": drafter, "draft_model": small}, work, chosen.out)
    # A DFlash drafter has the target's tokenizer and needs no copy.
    load(MuseGlimmerAssistantModel, work / "dflash").to(torch.bfloat16).save_pretrained(chosen.out / "dflash")


def load(kind: Any, folder: Path) -> Any:
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


def prepare(work: Path, wheel: Path) -> None:
    corpus = build_corpus(wheel)
    tokenizer = train_tokenizer(corpus)
    for split, texts in (("training", corpus.training), ("held_out", corpus.held_out)):
        for domain in DOMAINS:
            ids = encode(tokenizer, texts[domain])
            np.save(work / f"{domain}.{split}.npy", ids)
            print(f"{split} {domain}: {len(texts[domain])} documents, {len(ids)} tokens", flush=True)
    (work / "prompts.jsonl").write_text(
        "".join(f"{json.dumps(p, ensure_ascii=False)}\n" for p in prompts(tokenizer, corpus.held_out))
    )
    tokenizer.save(str(work / "tokenizer.json"))


def prompts(tokenizer: Tokenizer, held_out: dict[str, list[str]]) -> list[dict[str, str]]:
    """The benchmark's prompts: about 56 tokens from the middle of held-out documents, cut at a line's start."""
    chosen = []
    for domain in DOMAINS:
        texts = [text for text in held_out[domain] if len(text) > 800]
        for index in range(PROMPTS_A_DOMAIN):
            text = texts[index % len(texts)]
            start = text.find("\n", len(text) // 3 + 97 * (index // len(texts))) + 1
            end = tokenizer.encode(text[start : start + 1200]).offsets[55][1]
            prompt = {"id": f"{domain}-{index:02}", "domain": domain, "source": SOURCES[domain]}
            chosen.append(prompt | {"licence": LICENCES[domain], "text": text[start : start + end]})
    return chosen


def publish(models: dict[str, PreTrainedModel], work: Path, out: Path) -> None:
    """bfloat16 weights: rounding them costs nothing that the figures show."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "prompts.jsonl").write_bytes((work / "prompts.jsonl").read_bytes())
    shutil.copytree(work / "mtp_heads", out / "mtp_heads", dirs_exist_ok=True)
    for name, model in models.items():
        model.to(torch.bfloat16).save_pretrained(out / name)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(work / "tokenizer.json"),
            pad_token="<pad>",
            eos_token="<eos>",
            bos_token="<bos>",
            unk_token="<unk>",
        )
        tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.save_pretrained(out / name)


if __name__ == "__main__":
    main()
