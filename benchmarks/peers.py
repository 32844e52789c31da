"""The loops that benchmarks/loops.py runs on one pair: this runtime's and those that we did not write.

All are greedy, with one thread and drafts of a fixed length. Time is that of decoding, without the prompt's prefill.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import DynamicCache, Gemma4AssistantForCausalLM, Gemma4ForCausalLM
from transformers.generation.streamers import BaseStreamer

from pocketdraft.runtime import litert_lm

DRAFTS = 4


@dataclass(frozen=True)
class Run:
    """One pass over the prompts. `outputs` are the new tokens by prompt, or text of a peer that gives nothing else.

    `tokens` are those that took `seconds`. `accepted` is drafts a drafted round, None where the peer does not tell.
    """

    tokens: int
    seconds: float
    outputs: Sequence[list[int] | str]
    accepted: float | None = None

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


class Peer(Protocol):
    name: str

    def run(self, drafted: bool) -> Run: ...


@dataclass(frozen=True)
class Prompts:
    """The same prompts as text and as tokens, and how many tokens to add to each."""

    texts: list[str]
    tokens: list[list[int]]
    budget: int


class OwnPeer:
    """This runtime, opened anew in each run."""

    def __init__(self, backend: str, bundle: Path, prompts: Prompts) -> None:
        self.name = f"pocketdraft {backend}"
        self._job = {"bundle": str(bundle), "prompts": prompts.tokens, "budget": prompts.budget, "drafts": DRAFTS}

    def run(self, drafted: bool) -> Run:
        found = self._child(drafted, instrumented=False)
        return Run(found["tokens"], found["seconds"], found["outputs"], found["accepted"])

    def outside(self) -> float:
        """Share of a drafted round that no graph call accounts for. LiteRT only."""
        return sorted(self._child(True, instrumented=True)["outside"] for _ in range(3))[1]  # type: ignore[no-any-return]

    def _child(self, drafted: bool, instrumented: bool) -> dict[str, Any]:
        job = {"drafter": "mtp" if drafted else "none", "instrumented": instrumented}
        return run_child("own_loop.py", self._job | job)


class LiteRTLMPeer:
    name = "LiteRT-LM"

    def __init__(self, bundle: Path, prompts: Prompts) -> None:
        self._file, self._prompts = bundle / "model.litertlm", prompts

    def run(self, drafted: bool) -> Run:
        replies = litert_lm.run(self._file, self._prompts.texts, self._prompts.budget, drafted)
        accepted = None if replies.success_rate is None else replies.success_rate * DRAFTS
        return Run(sum(replies.tokens), sum(replies.decode_s), replies.texts, accepted)


class GenAIPeer:
    """onnxruntime-genai over the graphs of genai_graphs.py."""

    name = "onnxruntime-genai"

    def __init__(self, folder: Path, prompts: Prompts) -> None:
        self._job = {"folder": str(folder), "prompts": prompts.tokens, "budget": prompts.budget, "drafts": DRAFTS}

    def run(self, drafted: bool) -> Run:
        return Run(**run_child("genai_loop.py", self._job | {"drafted": drafted}))

    @staticmethod
    def installed() -> bool:
        return importlib.util.find_spec("onnxruntime_genai") is not None


class TransformersPeer:
    """float32; drafted is assisted generation.

    Compiled, its cache keeps whole layers: with sliding ones torch 2.13.0 stops at a NameError once it drafts, and
    assisted generation refuses a static cache.
    """

    def __init__(self, target: Path, drafter: Path, prompts: Prompts, compiled: bool) -> None:
        self.name = f"transformers {'compiled' if compiled else 'eager'}"
        self.model = Gemma4ForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        self._assistant = Gemma4AssistantForCausalLM.from_pretrained(drafter, dtype=torch.float32).eval()
        self._assistant.generation_config.num_assistant_tokens = DRAFTS
        self._assistant.generation_config.num_assistant_tokens_schedule = "constant"
        self._prompts, self._compiled = prompts, compiled
        if compiled:
            compile_forward(self.model)
            compile_forward(self._assistant)

    def run(self, drafted: bool) -> Run:
        options: dict[str, Any] = {"assistant_model": self._assistant} if drafted else {}
        tokens, rounds, seconds, outputs = 0, 0, 0.0, []
        for prompt in self._prompts.tokens:
            clock = Clock()
            if self._compiled:
                options["past_key_values"] = DynamicCache()
            ids, budget = torch.tensor([prompt]), self._prompts.budget
            self.model.generate(ids, max_new_tokens=budget, do_sample=False, pad_token_id=0, streamer=clock, **options)
            tokens += clock.tokens
            rounds += clock.rounds
            seconds += clock.seconds
            outputs.append(clock.output)
        return Run(tokens, seconds, outputs, tokens / rounds - 1 if drafted else None)

    @torch.no_grad()
    def margin(self, tokens: list[int], other: int) -> float:
        """By how much the logit of the last of `tokens` exceeds that of `other` in its place."""
        logits = self.model(torch.tensor([tokens[:-1]])).logits[0, -1]
        return float(logits[tokens[-1]] - logits[other])


class Clock(BaseStreamer):
    """Counts time, rounds and tokens from the first output on, which ends the prefill."""

    def __init__(self) -> None:
        self.output: list[int] = []
        self.tokens, self.seconds = 0, 0.0
        self.rounds = -2  # the prompt's and the prefill's outputs are none
        self._started = 0.0

    def put(self, value: torch.Tensor) -> None:
        self.rounds += 1
        if self.rounds == 0:
            self._started = time.perf_counter()
        if self.rounds >= 0:
            self.output += value.flatten().tolist()
        if self.rounds > 0:
            self.tokens += value.numel()

    def end(self) -> None:
        self.seconds = time.perf_counter() - self._started


def compile_forward(model: Any) -> None:
    """A graph each for prefill, decode and verify, and more as the cache's shape changes: minutes on two cores."""
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.capture_scalar_outputs = True  # the centroid head calls `.item()`
    model.forward = torch.compile(model.forward, dynamic=True)


def run_child(script: str, job: dict[str, Any]) -> dict[str, Any]:
    """The job's result, from a process without torch."""
    command = [sys.executable, str(Path(__file__).with_name(script))]
    child = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, errors="replace")
    if child.returncode:
        raise SystemExit(f"{script} failed: {child.stderr.strip().splitlines()[-1]}")
    return json.loads(child.stdout.splitlines()[-1])  # type: ignore[no-any-return]
