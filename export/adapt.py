"""adapt(task): distils a drafter on what its target, fine-tuned, writes from the user's own prompts.

A fine-tuned target no longer says what its drafter learned to foresee. Here the target writes text from the
prompts, greedily and at temperature 1, and the drafter learns on it with the loss of `distil`. A fifth of the
prompts is held out: what the draft-verify loop accepts there decides which weights are kept, the old ones included.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes

from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import sha256
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.stats import Stats
from pocketdraft.runtime.text import Tokenizer

from .checkpoint import Checkpoint
from .course import ANCHORS, DEPTH, DRAFTS, LOGITS_A_STEP, TEXTS_A_STEP, Course, State
from .hf_model import TorchDevice, check_torch_device, load_model
from .pair import check_pair
from .plan import Progress
from .staging import ADAPTED, check_out, staged
from .stored import DTYPES
from .written import Exam, Prompt, Text, Writer

HELD_OUT, MOST_HELD_OUT = 5, 32  # one prompt in HELD_OUT
WRITING_SHARE = 0.25  # of the time
LEAST_NEW = 16  # tokens of the context left for the target's own text
SMALL_BYTES = 1 << 30
NEW_TOKENS = 128  # after a prompt
MOST_TEXTS = 4096
COPIED = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "chat_template*")


@dataclass(frozen=True)
class Task:
    """`minutes` count from when the pair is loaded; `steps` may end the training earlier. `context` is in tokens."""

    target: Path
    drafter: Path
    prompts: Path
    out: Path
    lora: tuple[Path, ...] = ()
    minutes: float = 5.0
    steps: int | None = None
    device: TorchDevice = "cpu"
    context: int = 512


@dataclass(frozen=True)
class Acceptance:
    """Of `DRAFTS` drafts a round: the mean, and by position the share of rounds that accepted it."""

    per_round: float
    by_position: tuple[float, ...]

    @staticmethod
    def of(stats: Stats) -> Acceptance:
        shares = tuple(round(share, 4) for share in stats.acceptance_by_position())
        return Acceptance(round(stats.accepted_per_round, 4), shares)


@dataclass(frozen=True)
class Record:
    """What was done: `adapt.json` beside the weights. `kept_step` is 0 where the old weights stay."""

    target: str
    target_sha256: str
    drafter: str
    drafter_sha256: str
    prompts_sha256: str
    prompts: int
    held_out: int
    texts: int
    steps: int
    kept_step: int
    seconds: float
    device: str
    drafts: int
    before: Acceptance
    after: Acceptance
    versions: dict[str, str]


@dataclass(frozen=True)
class Inputs:
    """What `check` found good: the pair, and prompts as tokens, those held out apart."""

    target: Checkpoint
    drafter: Checkpoint
    practice: list[Prompt]
    held_out: list[Prompt]


def check(task: Task) -> Inputs:
    """Everything that can be refused before the pair is loaded. Raises PocketdraftError."""
    check_out(task.out, False, ADAPTED)
    check_torch_device(task.device)
    target, drafter = Checkpoint.open(task.target, task.lora), Checkpoint.open(task.drafter)
    check_pair(target, drafter)
    longest = target.text_config.max_position_embeddings
    if task.context > longest:
        raise PocketdraftError(f"--context is {task.context}, {task.target} was made for {longest}; give at most that.")
    tokenizer = Tokenizer(target.tokenizer_file, target.tokens().bos)
    unique: dict[tuple[int, ...], None] = {}
    for number, prompt in enumerate(read_prompts(task.prompts), 1):
        tokens = tokenizer.encode(prompt.text)
        if len(tokens) > task.context - LEAST_NEW:
            raise PocketdraftError(
                f"{task.prompts}: prompt {number} has {len(tokens)} tokens, --context {task.context} has room for "
                f"{task.context - LEAST_NEW} beside the target's own text; shorten it or raise --context."
            )
        unique[tuple(tokens)] = None
    prompts = [list(tokens) for tokens in unique]
    if len(prompts) < 2:
        raise PocketdraftError(
            f"{task.prompts} holds one prompt only; give two at least, one in {HELD_OUT} is held out to measure with."
        )
    held_out = prompts[HELD_OUT - 1 :: HELD_OUT][:MOST_HELD_OUT] or prompts[-1:]
    return Inputs(target, drafter, [prompt for prompt in prompts if prompt not in held_out], held_out)


def memory_needed(inputs: Inputs, device: str) -> str:
    """One line, from the files' headers alone."""
    dtype = _dtype(inputs.target)
    target = dtype.itemsize * _parameters(inputs.target) / 1e9
    drafter = 24 * _parameters(inputs.drafter) / 1e9  # weights three times, gradient, two moments: float32
    logits = 8 * DEPTH * min(LOGITS_A_STEP, TEXTS_A_STEP * ANCHORS * inputs.target.text_config.vocab_size) * 4 / 1e9
    return (
        f"about {target + drafter + logits:.1f} GB on {device}: target {target:.1f} in {str(dtype)[6:]}, "
        f"drafter and optimizer {drafter:.1f}, logits {logits:.1f}"
    )


def adapt(task: Task, progress: Progress = lambda *_: None) -> Record:
    """Writes the drafter's checkpoint to `task.out`, atomically. Raises PocketdraftError for bad input."""
    inputs = check(task)
    progress(f"Loading the pair, {memory_needed(inputs, task.device)}", 0, 1)
    torch.manual_seed(0)
    model = load_model(inputs.target, _dtype(inputs.target), "sdpa").to(task.device)
    drafter = load_model(inputs.drafter, torch.float32, "sdpa").to(task.device)
    writer = Writer(model.requires_grad_(False), task.context, NEW_TOKENS, inputs.target.tokens().stop)
    started = time.monotonic()
    deadline = started + 60 * task.minutes
    until = started + WRITING_SHARE * (deadline - started)
    progress("Writing text", 0, 1)
    exam = Exam.set_by(writer, inputs.held_out, started + (until - started) / 3)
    texts: dict[bool, list[Text]] = {False: [], True: []}
    wanted = TEXTS_A_STEP * task.steps if task.steps else MOST_TEXTS
    for sampled, more in writer.practice(inputs.practice, until):
        texts[sampled] += more
        written = sum(map(len, texts.values()))
        progress("Writing text", min(written, wanted), wanted)
        if written >= wanted or not written or time.monotonic() >= until:
            break
    if not exam.texts or not written:
        raise PocketdraftError(
            f"{inputs.target.name} wrote nothing after the prompts of {task.prompts} in {task.minutes:g} minutes; "
            "give more --minutes, or prompts that it does not answer with a stop token."
        )
    steps, before, kept = Course(model, drafter, exam, texts, _dtypes(inputs.drafter), task.steps, deadline).run(
        progress
    )
    progress("Writing the drafter", 0, 1)
    record = Record(
        target=inputs.target.name,
        target_sha256=inputs.target.sha256(),
        drafter=inputs.drafter.name,
        drafter_sha256=inputs.drafter.sha256(),
        prompts_sha256=sha256(task.prompts),
        prompts=len(inputs.practice) + len(inputs.held_out),
        held_out=len(inputs.held_out),
        texts=written,
        steps=steps,
        kept_step=kept.step,
        seconds=round(time.monotonic() - started, 1),
        device=task.device,
        drafts=DRAFTS,
        before=Acceptance.of(before),
        after=Acceptance.of(kept.stats),
        versions={name: metadata.version(name) for name in ("pocketdraft", "torch", "transformers")},
    )
    save(inputs.drafter, kept.state, record, task.out)
    return record


def save(drafter: Checkpoint, state: State, record: Record, out: Path) -> None:
    """The drafter's checkpoint with the weights of `state` in the place of its own, and the record."""
    with staged(out, kind=ADAPTED) as folder:
        for path in (path for pattern in COPIED for path in drafter.folder.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
        kept = {name: stored.read().to(DTYPES[stored.dtype]) for name, stored in drafter.tensors.items()}
        weights = {name: state.get(name, weight).cpu().contiguous() for name, weight in kept.items()}
        (folder / "model.safetensors").write_bytes(to_bytes(weights, {"format": "pt"}))
        (folder / ADAPTED.mark).write_text(json.dumps(asdict(record), indent=1) + "\n")


def _dtypes(checkpoint: Checkpoint) -> dict[str, torch.dtype]:
    """Of the weights that training changes, as they are stored."""
    return {name: DTYPES[stored.dtype] for name, stored in checkpoint.tensors.items() if stored.is_float}


def _dtype(target: Checkpoint) -> torch.dtype:
    """bfloat16; float32 for a small target, to which it matters: the embedded one's text changes, and of 3.2 drafts a
    round 2.8 are accepted."""
    return torch.float32 if 4 * _parameters(target) < SMALL_BYTES else torch.bfloat16


def _parameters(checkpoint: Checkpoint) -> int:
    return sum(math.prod(stored.shape) for stored in checkpoint.tensors.values())
