"""Fine-tune the embedded target, see acceptance fall; adapt its drafter, see it return.

    apt-get install debian-handbook
    python benchmarks/adapt.py --work build/adapt [--minutes 5]

The text is the Debian Administrator's Handbook in French (GPL-2+ or CC-BY-SA-3.0; installed, never copied here): a
language and a subject that the embedded pair never saw. One section in eight is held out. The target learns
the others as a LoRA over all linear layers, which is written as PEFT would write it; `pocketdraft adapt` gets prompts
cut from the same sections. Acceptance is that of the runtime's loop over our graphs in torch, on prompts of the
held-out sections and on the embedded ones: greedy, greedy where the next four tokens had not occurred before, and
drawn at temperature 1. The last line is JSON.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from acceptance import SampledEngine
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pocketdraft.export.adapt import Task, adapt
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.hf_model import load_model
from pocketdraft.export.muon import Optimizer
from pocketdraft.export.rungs import eager_pair
from pocketdraft.export.tiny import DRAFTER_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.runtime import terminal
from pocketdraft.runtime.bench import bench
from pocketdraft.runtime.prompts import Prompt, read_prompts
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.stats import Stats
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer

FRENCH, ENGLISH = re.compile(r"\b(de|la|le|les|est|un)\b"), re.compile(r"\b(the|of|and|is|to)\b")
HELD_OUT = 8  # one section in so many
PROMPT_TOKENS, PROMPTS, TEST_PROMPTS = 56, 240, 16
LENGTH, ROWS = 256, 8
SCALE = 2.0  # of the adapter: alpha / r
RATE = 0.2  # of those of a training from nothing


def sections(handbook: Path) -> list[str]:
    """The French ones, a paragraph a line, without those that the translators left in English."""
    texts = []
    for path in sorted((handbook / "fr-FR").glob("*.html")):
        found = re.findall(r'<div class="para">(.*?)</div>', path.read_text(encoding="utf-8"), re.S)
        plain = [" ".join(html.unescape(re.sub(r"<[^>]*>", "", text)).split()) for text in found]
        texts.append("\n".join(text for text in plain if len(FRENCH.findall(text)) > len(ENGLISH.findall(text))))
    return [text for text in texts if len(text) > 1000]


def cut_prompts(tokenizer: Tokenizer, texts: Iterable[str], count: int) -> list[str]:
    """Starts of paragraphs, evenly taken, `PROMPT_TOKENS` long."""
    long = [line for text in texts for line in text.splitlines() if len(line) > 5 * PROMPT_TOKENS]
    return [tokenizer.decode(tokenizer.encode(line)[1 : 1 + PROMPT_TOKENS]) for line in long[:: len(long) // count]][
        :count
    ]


class LoRA(nn.Module):
    """W + scale B A, as a parametrization of a linear layer's weight."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, weight.shape[1]) * weight.shape[1] ** -0.5)
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + SCALE * self.b @ self.a


def fine_tune(tokens: Tensor, folder: Path, rank: int, steps: int) -> None:
    """Trains a LoRA of the embedded target and writes it in PEFT's format."""
    torch.manual_seed(0)
    model = load_model(Checkpoint.open(TARGET_DIR), torch.float32, "sdpa").requires_grad_(False).train()
    adapted = {name: module for name, module in model.model.named_modules() if isinstance(module, nn.Linear)}
    for module in adapted.values():
        nn.utils.parametrize.register_parametrization(module, "weight", LoRA(module.weight, rank))
        module.parametrizations.weight.original.requires_grad_(False)
    optimizer = Optimizer(model, RATE)
    for index in range(steps):
        starts = torch.randint(len(tokens) - LENGTH, (ROWS,)).tolist()
        rows = torch.stack([tokens[start : start + LENGTH + 1] for start in starts])
        loss = cross_entropy(model(input_ids=rows[:, :-1], use_cache=False).logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        optimizer.step(index, index / steps)
        if index % 50 == 49:
            print(f"fine-tuning {index + 1}/{steps}: loss {loss.item():.3f}", flush=True)
    weights = {}
    for name, module in adapted.items():
        lora, prefix = module.parametrizations.weight[0], f"base_model.model.model.{name}.lora_"
        weights |= {f"{prefix}A.weight": lora.a.detach(), f"{prefix}B.weight": lora.b.detach()}
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": SCALE * rank,
        "base_model_name_or_path": "the embedded target",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


@torch.no_grad()
def loss_of(lora: list[Path], tokens: Tensor) -> float:
    """Nats a token, over the first 32 windows."""
    model, rows = (
        load_model(Checkpoint.open(TARGET_DIR, lora), torch.float32, "sdpa"),
        tokens[: 32 * LENGTH].view(32, LENGTH),
    )
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return round(cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item(), 2)


def measure(lora: list[Path], drafter: Path, prompts: list[Prompt], tokens: int) -> dict[str, dict[str, float]]:
    """Accepted drafts a round, by domain: greedy, novel only, temperature 1, and prompt lookup's."""
    engine = eager_pair(Checkpoint.open(TARGET_DIR, lora), Checkpoint.open(drafter), context=512)
    tokenizer = Tokenizer(TARGET_DIR / "tokenizer.json", engine.manifest.tokens.bos)
    found = bench(Target(engine), tokenizer, prompts, tokens, 4, lambda done: None)
    noisy, sampled = Target(SampledEngine(engine, seed=0)), {domain: Stats() for domain in found}
    for prompt in prompts:
        session = open_session(noisy.engine, "mtp", 4, noisy)
        session.stats = sampled[prompt.domain]
        for _ in session.generate(tokenizer.encode(prompt.text), tokens):
            pass
    return {
        domain: {
            "greedy": round(one.stats["mtp"].accepted_per_round, 3),
            "novel": round(one.novel_accepted, 3),
            "sampled": round(sampled[domain].accepted_per_round, 3),
            "prompt_lookup": round(one.stats["prompt_lookup"].accepted_per_round, 3),
        }
        for domain, one in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="what is made here is not made again")
    parser.add_argument("--handbook", type=Path, default=Path("/usr/share/doc/debian-handbook/html"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--per-domain", type=int, default=8, help="embedded prompts measured of each old domain")
    parser.add_argument("--max-tokens", type=int, default=96)
    chosen = parser.parse_args()
    terminal.silence_native_code()
    work: Path = chosen.work
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(TARGET_DIR / "tokenizer.json", 2)
    texts = sections(chosen.handbook)
    training = [text for index, text in enumerate(texts) if index % HELD_OUT]
    prompts = work / "prompts.jsonl"
    prompts.write_text("".join(f"{json.dumps({'text': t})}\n" for t in cut_prompts(tokenizer, training, PROMPTS)))
    test = [Prompt(text=t, domain="French") for t in cut_prompts(tokenizer, texts[::HELD_OUT], TEST_PROMPTS)]
    test += read_prompts(PROMPTS_FILE, chosen.per_domain)

    lora, minutes = work / "lora", {}
    if not lora.exists():
        started = time.process_time()
        fine_tune(torch.tensor(tokenizer.encode("\n".join(training))), lora, chosen.rank, chosen.steps)
        minutes["fine-tuning"] = round((time.process_time() - started) / 60, 1)
    started = time.process_time()
    task = Task(TARGET_DIR, DRAFTER_DIR, prompts, work / "drafter", (lora,), chosen.minutes)
    with terminal.progress(quiet=False) as advance:
        record = adapt(task, advance)
    minutes["adapting"] = round((time.process_time() - started) / 60, 1)

    held_out = torch.tensor(tokenizer.encode("\n".join(texts[::HELD_OUT])))
    losses = {"base": loss_of([], held_out), "fine-tuned": loss_of([lora], held_out)}
    pairs: dict[str, tuple[list[Path], Path]] = {
        "base pair": ([], DRAFTER_DIR),
        "fine-tuned, old drafter": ([lora], DRAFTER_DIR),
        "fine-tuned, adapted drafter": ([lora], task.out),
    }
    found = {name: measure(*pair, test, chosen.max_tokens) for name, pair in pairs.items()}
    print("\n| domain | figure | " + " | ".join(pairs) + " |")
    print("| --- | --- |" + " --- |" * len(pairs))
    for domain in found["base pair"]:
        for figure in ("greedy", "novel", "sampled", "prompt_lookup"):
            print(
                f"| {domain} | {figure} | " + " | ".join(f"{row[domain][figure]:.2f}" for row in found.values()) + " |"
            )
    print(f"\nHeld-out French, nats a token: base {losses['base']}, fine-tuned {losses['fine-tuned']}")
    print(
        json.dumps(
            {"accepted_per_round": found, "french_nats": losses, "cpu_minutes": minutes, "adapt": asdict(record)}
        )
    )


if __name__ == "__main__":
    main()
