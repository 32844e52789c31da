"""A native MTP head for SmolLM2, distilled on what the model itself writes: questions and answers, without a corpus.

    python -m pocketdraft.export.smollm2_head --target build/smollm2 --out build/smollm2-head --write 60 --train 60

An instruct model that is given no more than the start of a user's turn writes the question too (Xu et al., Magpie,
arXiv 2406.08464). Questions are drawn, answers are greedy. What was written is kept beside the head, in OUT.texts: the
next call adds to it, or with `--write 0` only trains anew. On a GPU (`--device cuda`) minutes do.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.modeling_layers import MtpLayer

from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.files import write_whole
from pocketdraft.runtime.stats import Stats
from pocketdraft.runtime.text import Tokenizer

from .checkpoint import Checkpoint
from .distil import count_rounds, teach
from .heads import accepted, head_config, head_loss, own_head, save_head, untrained
from .hf_model import TorchDevice, check_torch_device, load_model
from .muon import Optimizer
from .written import Text, Writer

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
USER = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
ASSISTANT = "\n<|im_start|>assistant\n"
CONTEXT, NEW_TOKENS = 512, 256  # of a text; of a question or of an answer
TEMPERATURE = 0.8  # of questions; colder than Magpie's, for a model that small
# What some of the questions begin with: left alone the model asks for few of these.
BEGINNINGS = (
    "Correct the spelling: ",
    "Rewrite this text: ",
    "Summarize: ",
    "Read the text, then answer. Text: ",
    "Write a function that ",
    "Write a list of ",
    "Translate: ",
)
HELD_OUT = 24  # texts, the first ones
ROWS, DEPTH = 96, 3  # of each text of a step: rows that are learned from, drafts unrolled
DRAFTS = 4  # a round, where acceptance is told
DRAFTED = 8192  # tokens: the most frequent ones. Reading the target's head, for all 49,152, takes most of a draft
QUESTIONS: dict[TorchDevice, int] = {"cpu": 64, "cuda": 2048}  # at once
TEXTS: dict[TorchDevice, int] = {"cpu": 2, "cuda": 32}  # of a step


def read(kept: Path) -> list[Text]:
    """What was written before, in that order."""
    rows = [row for file in sorted(kept.glob("*.json")) for row in json.loads(file.read_text())]
    return [Text(torch.tensor(tokens), prompt, budget) for tokens, prompt, budget in rows]


def keep(kept: Path, texts: list[Text]) -> None:
    """As one file more: of each text its tokens, how many of them were given, and the budget."""
    kept.mkdir(parents=True, exist_ok=True)
    rows = [(text.tokens.tolist(), text.prompt, text.budget) for text in texts]
    write_whole(kept / f"{len(list(kept.glob('*.json'))):05}.json", json.dumps(rows))


def answered(writer: Writer, tokenizer: Tokenizer, questions: int, until: float) -> list[Text]:
    """Texts of a question and its answer; none where no question came to its end."""
    begun = [tokenizer.encode(USER + beginning) for beginning in ("", "", "", *BEGINNINGS)]
    turn = tokenizer.encode(ASSISTANT)
    asked = writer.write([begun[index % len(begun)] for index in range(questions)], TEMPERATURE, until)
    whole = [text.tokens.tolist() + turn for text in asked if int(text.tokens[-1]) in writer.stop]
    return writer.write(whole, 0.0, until) if whole else []


def write(writer: Writer, tokenizer: Tokenizer, questions: int, until: float, kept: Path) -> list[Text]:
    """What was written before, and more until that time, of `time.monotonic`. Kept after each batch.

    Raises PocketdraftError where those are no more texts than are held out.
    """
    texts = read(kept)
    while time.monotonic() < until:
        if more := answered(writer, tokenizer, questions, until):
            keep(kept, more)
        texts += more
        print(f"{len(texts)} texts of {sum(len(text.tokens) for text in texts)} tokens", flush=True)
    if len(texts) <= HELD_OUT:
        raise PocketdraftError(
            f"The target wrote {len(texts)} texts in that time, the first {HELD_OUT} are held out to measure with; "
            "give more minutes to --write."
        )
    return texts


def train(target: PreTrainedModel, texts: list[Text], at_once: int, until: float) -> MtpLayer:
    head, random = untrained(head_config(target.config), target), torch.Generator().manual_seed(1)
    optimizer, index, start, done = Optimizer(head), 0, time.monotonic(), 0.0
    while done < 1:
        chosen = [texts[int(one)] for one in torch.randint(0, len(texts), (at_once,), generator=random)]
        lengths = torch.tensor([len(text.tokens) for text in chosen])
        tokens = pad_sequence([text.tokens for text in chosen], batch_first=True)
        rows = torch.randperm(int(lengths.max()) - DEPTH, generator=random)[:ROWS].sort().values
        teacher, device = teach(target, tokens.to(target.device)), target.device
        loss = head_loss(head, teacher, DEPTH, rows.to(device), lengths.to(device))
        loss.backward()
        optimizer.step(index, done)
        index, done = index + 1, min(1.0, (time.monotonic() - start) / max(until - start, 1e-6))
        if index % 20 == 0:
            print(f"step {index}, {done:.0%}: loss {loss.item():.3f}", flush=True)
    return head.eval()


def frequent(texts: list[Text], vocabulary: int, count: int) -> Tensor:
    """The tokens to draft, those that come most: int64 [count]."""
    counts = torch.bincount(torch.cat([text.tokens for text in texts]), minlength=vocabulary)
    return counts.topk(count).indices.sort().values


def measure(target: PreTrainedModel, head: MtpLayer, exam: list[Text], drafted: Tensor | None) -> Stats:
    """The rounds that the draft-verify loop makes of these texts."""
    stats = Stats()
    for text in exam:
        counts = accepted(head, teach(target, text.tokens[None].to(target.device)), DRAFTS, drafted)[0]
        count_rounds(counts[text.prompt - 1 :].tolist(), text.prompt, text.budget, DRAFTS, stats)
    return stats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True, help="what `export.smollm2` wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--write", type=float, default=60.0, help="minutes")
    parser.add_argument("--train", type=float, default=60.0, help="minutes")
    parser.add_argument("--device", choices=get_args(TorchDevice), default="cpu")
    chosen = parser.parse_args()
    check_torch_device(chosen.device)
    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_float32_matmul_precision("high")
    checkpoint = Checkpoint.open(chosen.target)
    target = load_model(checkpoint, torch.bfloat16, "sdpa").requires_grad_(False).to(chosen.device)
    special, kept = checkpoint.tokens(), chosen.out.with_suffix(".texts")
    tokenizer = Tokenizer(checkpoint.tokenizer_file, special.bos)
    writer = Writer(target, CONTEXT, NEW_TOKENS, special.stop)
    texts = write(writer, tokenizer, QUESTIONS[chosen.device], time.monotonic() + 60 * chosen.write, kept)
    exam, practice = texts[:HELD_OUT], texts[HELD_OUT:]
    head = train(target, practice, TEXTS[chosen.device], time.monotonic() + 60 * chosen.train)
    drafted = frequent(practice, target.config.vocab_size, DRAFTED).to(chosen.device)
    for what, tokens in {"all tokens": None, f"the {DRAFTED} most frequent": drafted}.items():
        stats = measure(target, head, exam, tokens)
        shares = ", ".join(f"{share:.2f}" for share in stats.conditional_acceptance_by_position())
        print(f"{stats.accepted_per_round:.2f} of {DRAFTS} drafts a round on held-out answers, of {what} ({shares})")
    save_head(head.cpu(), head_config(target.config), chosen.out, own_head(target, drafted))


if __name__ == "__main__":
    try:
        main()
    except PocketdraftError as error:
        raise SystemExit(str(error)) from error
