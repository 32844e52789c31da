"""The training of an adaptation: steps, measurements between them, and the best weights that came up."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import Gemma4AssistantForCausalLM, PreTrainedModel

from pocketdraft.runtime.stats import Stats

from .distil import distillation_loss, teach
from .muon import Optimizer
from .plan import Progress
from .written import Exam, Text

DRAFTS = 4  # a round, where acceptance is measured
DEPTH = 6  # drafts unrolled in training
TEXTS_A_STEP, ANCHORS = 6, 100
LOGITS_A_STEP = 1 << 25  # of one draft, at most: 128 MB
LEAST_ANCHORS = 8
RATE = 0.5  # of the learning rates that a drafter starts from nothing with
SPOILED = 0.9  # of the best acceptance: below, the rate was too high
MEASUREMENTS = 8
State = dict[str, Tensor]


@dataclass(frozen=True)
class Kept:
    """Weights after so many steps, by name and of the types in the checkpoint, and the rounds that they make."""

    step: int
    state: State
    stats: Stats


@dataclass(frozen=True)
class Course:
    """The training; `texts` are those written greedily (False) and those sampled (True), half of each step."""

    target: PreTrainedModel
    drafter: Gemma4AssistantForCausalLM
    exam: Exam
    texts: dict[bool, list[Text]]
    dtypes: dict[str, torch.dtype]
    steps: int | None
    deadline: float

    def run(self, progress: Progress) -> tuple[int, Stats, Kept]:
        """Steps taken, the rounds of the old weights, and the best of what came up, the old weights included.

        Rates that suit one size spoil another: where acceptance falls, it goes on from the best with a lower rate.
        """
        random, rate, index, warm, measured, done = torch.Generator().manual_seed(0), RATE, 0, 0, 0, 0.0
        start = time.monotonic()
        kept = first = self._measured(0, copy.deepcopy(self.drafter))
        end = self.deadline - (time.monotonic() - start)  # the last measurement takes as long
        optimizer = Optimizer(self.drafter.train(), rate)
        while done < 1:
            self._loss(random).backward()
            optimizer.step(warm, done)
            index, warm = index + 1, warm + 1
            done = (time.monotonic() - start) / max(end - start, 1e-6)
            done = min(1.0, max(done, index / self.steps if self.steps else 0.0))
            progress(f"Training, {kept.stats.accepted_per_round:.2f} accepted a round", round(100 * done), 100)
            if done * MEASUREMENTS >= measured + 1:
                measured = int(done * MEASUREMENTS)
                now = self._measured(index, copy.deepcopy(self.drafter))
                kept = max(kept, now, key=lambda one: one.stats.accepted_per_round)
                if now.stats.accepted_per_round < SPOILED * kept.stats.accepted_per_round:
                    self.drafter.load_state_dict(kept.state, strict=False)
                    rate, warm = rate / 4, 0
                    optimizer = Optimizer(self.drafter, rate)
        return index, first.stats, kept

    def _measured(self, step: int, copied: Gemma4AssistantForCausalLM) -> Kept:
        """With the weights rounded as they will be stored."""
        weights = copied.state_dict()
        state = {name: weights[name].to(dtype, copy=True) for name, dtype in self.dtypes.items()}
        copied.load_state_dict(state, strict=False)
        return Kept(step, state, self.exam.measure(copied.eval(), DRAFTS))

    def _loss(self, random: torch.Generator) -> Tensor:
        batch = [self._draw(bool(row % 2), random) for row in range(TEXTS_A_STEP)]
        device, vocabulary = self.target.device, self.target.config.get_text_config().vocab_size
        rows = pad_sequence([text.tokens for text in batch], batch_first=True)
        first, last = min(text.prompt for text in batch) - 1, rows.shape[1] - 3
        count = max(LEAST_ANCHORS, min(ANCHORS, LOGITS_A_STEP // TEXTS_A_STEP // vocabulary))
        anchors = first + torch.randperm(last + 1 - first, generator=random)[:count].sort().values
        weight = torch.stack([(anchors >= text.prompt - 1) & (anchors < len(text.tokens) - 2) for text in batch])
        lengths = torch.tensor([len(text.tokens) for text in batch])
        teacher = teach(self.target, pad(rows, (0, DEPTH)).to(device))
        return distillation_loss(
            self.drafter, teacher, DEPTH, anchors.to(device), weight.float().to(device), lengths.to(device)
        )

    def _draw(self, sampled: bool, random: torch.Generator) -> Text:
        texts = self.texts[sampled] or self.texts[not sampled]
        return texts[int(torch.randint(len(texts), (), generator=random))]
