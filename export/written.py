"""Text that a target writes itself: what its drafter learns from, and what it is examined on."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Gemma4AssistantForCausalLM, GenerationConfig, PreTrainedModel

from pocketdraft.runtime.stats import Stats

from .distil import Teacher, replay, teach

AT_ONCE = 64
Prompt = list[int]


@dataclass(frozen=True)
class Text:
    """`tokens` int64 [T] on the CPU, the first `prompt` of them given; a stop token ended it if `budget` is larger."""

    tokens: Tensor
    prompt: int
    budget: int


@dataclass(frozen=True)
class Writer:
    """Writes up to `new_tokens` after a prompt, where the `context` has room for them; one of `stop` ends a text."""

    target: PreTrainedModel
    context: int
    new_tokens: int
    stop: tuple[int, ...]

    def write(self, prompts: Sequence[Prompt], temperature: float, until: float) -> list[Text]:
        """What the target writes after each prompt, where that is two tokens at least; temperature 0 is greedy.

        Cut short at `until`, of `time.monotonic`.
        """
        longest, device = max(map(len, prompts)), self.target.device
        padding = [longest - len(prompt) for prompt in prompts]
        sampled = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        self.target.generation_config = GenerationConfig()  # the checkpoint's own may punish repetition: no graph does
        ids = [[0] * left + prompt for left, prompt in zip(padding, prompts, strict=True)]
        visible = [[0] * left + [1] * (longest - left) for left in padding]
        with self.target.lm_head.register_forward_pre_hook(_contiguous):
            output = self.target.generate(
                torch.tensor(ids, device=device),
                attention_mask=torch.tensor(visible, device=device),
                max_new_tokens=self.new_tokens,
                max_time=max(0.0, until - time.monotonic()),
                eos_token_id=list(self.stop) or None,
                pad_token_id=0,
                **(sampled if temperature else {"do_sample": False}),
            ).cpu()
        texts = [self._text(row[left:], longest - left) for row, left in zip(output, padding, strict=True)]
        return [text for text in texts if len(text.tokens) > text.prompt + 1]

    def practice(self, prompts: Sequence[Prompt], until: float) -> Iterator[tuple[bool, list[Text]]]:
        """Endless: is it sampled, and some texts. Each prompt once greedily, in turns with sampled ones."""
        chunks = [list(prompts[start : start + AT_ONCE]) for start in range(0, len(prompts), AT_ONCE)]
        enough = [list(prompts) * (AT_ONCE // len(prompts))] if len(prompts) < AT_ONCE else chunks
        for turn in itertools.count():
            if turn < len(chunks):
                yield False, self.write(chunks[turn], 0.0, until)
            yield True, self.write(enough[turn % len(enough)], 1.0, until)

    def _text(self, tokens: Tensor, prompt: int) -> Text:
        tokens = tokens[: self.context]
        ends = torch.isin(tokens[prompt:], torch.tensor(self.stop, dtype=torch.int64)).nonzero()
        if len(ends):
            tokens = tokens[: prompt + int(ends[0]) + 1]
        return Text(tokens, prompt, len(tokens) - prompt + bool(len(ends)))


def _contiguous(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of a prompt its last row is asked for, a slice; torch 2.13.0 multiplies that by a copy of the head for each text
    (bfloat16: of gigabytes)."""
    return tuple(one.contiguous() for one in inputs)


@dataclass(frozen=True)
class Exam:
    """Texts written greedily from prompts that nothing is learned from, and the target's pass over each."""

    texts: list[Text]
    passes: list[Teacher]

    @staticmethod
    def set_by(writer: Writer, prompts: Sequence[Prompt], until: float) -> Exam:
        texts, device = writer.write(prompts, 0.0, until), writer.target.device
        return Exam(texts, [teach(writer.target, text.tokens[None].to(device)) for text in texts])

    def measure(self, drafter: Gemma4AssistantForCausalLM, drafts: int) -> Stats:
        """The rounds that the draft-verify loop makes of these texts with `drafter`."""
        stats = Stats()
        for text, done in zip(self.texts, self.passes, strict=True):
            replay(drafter, done, text.prompt, text.budget, drafts, stats)
        return stats
