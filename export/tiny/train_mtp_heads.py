"""Trains a native MTP head for the embedded target: one decoder layer that drafts, with K/V of its own.

Such heads are trained along with their target for the token after the next (depth 1), always on the target's hidden
states, and are asked for more at run time. `depth` above 1 unrolls the head over its own states instead, over K/V as
they are when drafting. Letters in shapes: B texts, T tokens, N rows, D the target's hidden size, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, Gemma4ForCausalLM, Qwen3Config
from transformers.modeling_layers import MtpLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding

from ..distil import DEPTH_DECAY, OFF_PATH, Teacher, teach, token_loss
from ..models.mtp_config import MtpHeadsConfig
from ..muon import Optimizer
from .configs import mtp_heads_config
from .train_drafter import _mixed
from .training import Batches

TEXTS = 6  # of a step
PADDING = 0
MASKED = torch.finfo(torch.float32).min
# transformers' names of a head's parts, and those in checkpoints of Mellum and Qwen3.5.
NAMES = {
    "enorm.": "pre_fc_norm_embedding.",
    "hnorm.": "pre_fc_norm_hidden.",
    "eh_proj.": "fc.",
    "mtp_block.": "layers.0.",
    "post_norm.": "norm.",
}


def train_mtp_head(
    target: Gemma4ForCausalLM, training: Batches, written: Tensor, steps: int, depth: int = 1
) -> MtpLayer:
    """`written`, int64 [texts, LENGTH], is the target's own text: half of what is learned from."""
    torch.manual_seed(0)
    head = new_head(mtp_heads_config(target.config)).train()
    with torch.no_grad():  # its head is the target's, which expects this scale
        head.post_norm.weight.copy_(target.model.norm.weight)
    optimizer, random, started = Optimizer(head), torch.Generator().manual_seed(9), time.process_time()
    for index in range(steps):
        loss = head_loss(head, teach(target, _mixed(training, written, TEXTS, random)), depth)
        loss.backward()
        optimizer.step(index, index / steps)
        if index % 50 == 49:
            minutes = (time.process_time() - started) / 60
            print(f"MTP head {index + 1}/{steps}: loss {loss.item():.3f}, {minutes:.1f} CPU minutes", flush=True)
    return head.eval()


def new_head(config: MtpHeadsConfig) -> MtpLayer:
    """transformers' own module: Mellum's arithmetic, for which Qwen3's layer stands (its MLP is always dense)."""
    text = Qwen3Config(**{name: getattr(config, name) for name in FIELDS}, num_hidden_layers=1)
    text._attn_implementation = "sdpa"
    head = MtpLayer(text, Qwen3DecoderLayer, Qwen3RMSNorm, 0)
    for weight in head.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, 0.0, weight.shape[1] ** -0.5)
    return head


FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("rms_norm_eps", "rope_parameters", "max_position_embeddings"),
)


def unroll(head: MtpLayer, teacher: Teacher, depth: int, count: int) -> Iterator[Tensor]:
    """Yields the state of draft k = 0.. from every row p = 0..N - 1, [B, N, D]: it is of token p + 2 + k.

    Draft 0 is fed the target's hidden state; draft k > 0 the state before it and the text's token p + 1 + k, and sees
    the K/V of rows 0..p and of its own drafts.
    """
    rows, cache, state = torch.arange(count), DynamicCache(), teacher.hidden[:, :count]
    past = torch.zeros(count, count).masked_fill(rows[None] > rows[:, None], MASKED)
    own = torch.full((count, count), MASKED).fill_diagonal_(0.0)
    rotary = Qwen3RotaryEmbedding(head.config)
    for k in range(depth):
        state = head(
            teacher.embed(rows + 1 + k),
            state,
            position_embeddings=rotary(state, (rows + k)[None]),
            attention_mask=torch.cat([past, *[own] * k], 1)[None, None],
            position_ids=None,
            past_key_values=cache,
        )
        yield state


def head_loss(head: MtpLayer, teacher: Teacher, depth: int) -> Tensor:
    """Nats a draft, a scalar: towards the target's own distributions."""
    loss, total = torch.zeros(()), 0.0
    rows = torch.arange(teacher.tokens.shape[1] - depth)  # the rest has too few tokens after it
    weight = torch.ones(len(teacher.tokens), len(rows))
    for k, state in enumerate(unroll(head, teacher, depth, len(rows))):
        wanted = teacher.logits(rows + k + 1)
        loss = loss + DEPTH_DECAY**k * (weight * token_loss(logits(teacher, state), wanted)).sum() / weight.sum()
        total += DEPTH_DECAY**k
        if k + 1 < depth:  # where the text leaves the target's choice, later drafts would not be reached
            weight = weight * torch.where(teacher.tokens[:, rows + k + 2] == wanted.argmax(-1), 1.0, OFF_PATH)
    return loss / total


def logits(teacher: Teacher, state: Tensor) -> Tensor:
    """By the target's head, with its softcap: [B, N, D] -> [B, N, V]."""
    cap = teacher.target.config.final_logit_softcapping
    return torch.tanh(teacher.target.lm_head(state) / cap) * cap


@torch.no_grad()
def accepted(head: MtpLayer, teacher: Teacher, drafts: int) -> Tensor:
    """How many drafts from each row are the text's own tokens, up to the first that is not: int64 [B, T - 1]."""
    padded = replace(teacher, tokens=pad(teacher.tokens, (0, drafts), value=PADDING))
    rows = torch.arange(teacher.tokens.shape[1] - 1)
    matches = [
        logits(teacher, state).argmax(-1) == padded.tokens[:, rows + k + 2]
        for k, state in enumerate(unroll(head, padded, drafts, len(rows)))
    ]
    return torch.stack(matches).long().cumprod(0).sum(0)


def checkpoint_name(name: str) -> str:
    """Of a weight that transformers' `MtpLayer` has as `name`."""
    part = next(part for part in NAMES if name.startswith(part))
    return f"mtp.{NAMES[part]}{name.removeprefix(part)}"


def save_head(head: MtpLayer, config: MtpHeadsConfig, folder: Path) -> None:
    """bfloat16, under the names of a checkpoint."""
    weights = {checkpoint_name(name): weight.to(torch.bfloat16) for name, weight in head.state_dict().items()}
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load_head(folder: Path) -> MtpLayer:
    """What `save_head` wrote, as transformers' module in float32."""
    head = new_head(MtpHeadsConfig.from_pretrained(folder))
    stored = load_file(folder / "model.safetensors")
    head.load_state_dict({name: stored[checkpoint_name(name)] for name in head.state_dict()})
    return head.eval().requires_grad_(False)
