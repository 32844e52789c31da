"""A native MTP head for SmolLM2, distilled on what the model itself writes: questions and answers, without a corpus.

    python -m pocketdraft.export.smollm2_head --target build/smollm2 --out build/smollm2-head --write 60 --train 60

An instruct model that is given no more than the start of a user's turn writes the question too (Xu et al., Magpie,
arXiv 2406.08464). Questions are drawn, answers are greedy. What was written is kept beside the head: the next call adds
to it, or with `--write 0` only trains anew.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

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
from .hf_model import load_model
from .muon import Optimizer
from .written import Text, Writer

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
USER = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
ASSISTANT = "\n<|im_start|>assistant\n"
CONTEXT = 256  # tokens of a text
QUESTIONS, TEMPERATURE = 64, 0.8  # at once; colder than Magpie's, for a model that small
HELD_OUT = 24
TEXTS, ROWS, DEPTH = 4, 96, 3  # of a step: texts, rows of each that are learned from, drafts unrolled
DRAFTS = 4  # a round, where acceptance is told
DRAFTED = 8192  # tokens: the most frequent ones. Reading the target's head, for all 49,152, takes most of a draft


@dataclass(frozen=True)
class Written:
    """Texts to learn from, and those to be measured on."""

    practice: list[Text]
    exam: list[Text]

    def to_json(self) -> str:
        """Of each text its tokens, how many of them were given, and the budget."""

        def rows(texts: list[Text]) -> list[tuple[list[int], int, int]]:
            return [(text.tokens.tolist(), text.prompt, text.budget) for text in texts]

        return json.dumps({"practice": rows(self.practice), "exam": rows(self.exam)})

    @staticmethod
    def read(path: Path) -> Written:
        rows = json.loads(path.read_text())
        texts = {name: [Text(torch.tensor(tokens), *more) for tokens, *more in rows[name]] for name in rows}
        return Written(**texts)


def answered(writer: Writer, tokenizer: Tokenizer, until: float) -> list[Text]:
    """Texts of a question and its answer; none where no question came to its end."""
    start, turn = tokenizer.encode(USER), tokenizer.encode(ASSISTANT)
    asked = writer.write([start] * QUESTIONS, TEMPERATURE, until)
    whole = [text.tokens.tolist() + turn for text in asked if int(text.tokens[-1]) in writer.stop]
    return writer.write(whole, 0.0, until) if whole else []


def write(writer: Writer, tokenizer: Tokenizer, until: float, kept: Path) -> Written:
    """What was written before, and more until that time, of `time.monotonic`. Kept after each batch.

    Raises PocketdraftError where that is too short for more texts than are held out.
    """
    kept.parent.mkdir(parents=True, exist_ok=True)
    written = Written.read(kept) if kept.exists() else Written([], [])
    while time.monotonic() < until:
        texts = answered(writer, tokenizer, until)
        (written.exam if len(written.exam) < HELD_OUT else written.practice).extend(texts)
        tokens = sum(len(text.tokens) for text in written.practice)
        print(f"{len(written.practice)} texts of {tokens} tokens", flush=True)
        write_whole(kept, written.to_json())
    if not written.practice:
        raise PocketdraftError(
            f"The target wrote {len(written.exam)} texts in that time, the first {HELD_OUT} are held out to measure "
            "with; give more minutes to --write."
        )
    return written


def train(target: PreTrainedModel, texts: list[Text], until: float) -> MtpLayer:
    head, random = untrained(head_config(target.config), target), torch.Generator().manual_seed(1)
    optimizer, index, start, done = Optimizer(head), 0, time.monotonic(), 0.0
    while done < 1:
        chosen = [texts[int(one)] for one in torch.randint(0, len(texts), (TEXTS,), generator=random)]
        lengths = torch.tensor([len(text.tokens) for text in chosen])
        teacher = teach(target, pad_sequence([text.tokens for text in chosen], batch_first=True))
        most = int(lengths.max()) - DEPTH
        rows = torch.randperm(most, generator=random)[:ROWS].sort().values
        loss = head_loss(head, teacher, DEPTH, rows, lengths)
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
        counts = accepted(head, teach(target, text.tokens[None]), DRAFTS, drafted)[0]
        count_rounds(counts[text.prompt - 1 :].tolist(), text.prompt, text.budget, DRAFTS, stats)
    return stats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True, help="what `export.smollm2` wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--write", type=float, default=60.0, help="minutes")
    parser.add_argument("--train", type=float, default=60.0, help="minutes")
    chosen = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    checkpoint = Checkpoint.open(chosen.target)
    target = load_model(checkpoint, torch.bfloat16, "sdpa").requires_grad_(False)
    special = checkpoint.tokens()
    tokenizer, writer = Tokenizer(checkpoint.tokenizer_file, special.bos), Writer(target, CONTEXT, special.stop)
    kept = chosen.out.with_suffix(".texts.json")
    texts = write(writer, tokenizer, time.monotonic() + 60 * chosen.write, kept)
    head = train(target, texts.practice, time.monotonic() + 60 * chosen.train)
    drafted = frequent(texts.practice, target.config.vocab_size, DRAFTED)
    for what, tokens in {"all tokens": None, f"the {DRAFTED} most frequent": drafted}.items():
        stats = measure(target, head, texts.exam, tokens)
        shares = ", ".join(f"{share:.2f}" for share in stats.conditional_acceptance_by_position())
        print(f"{stats.accepted_per_round:.2f} of {DRAFTS} drafts a round on held-out answers, of {what} ({shares})")
    save_head(head, head_config(target.config), chosen.out, own_head(target, drafted))


if __name__ == "__main__":
    try:
        main()
    except PocketdraftError as error:
        raise SystemExit(str(error)) from error
