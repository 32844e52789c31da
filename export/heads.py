"""How a native MTP head learns from its target: one decoder layer that drafts, with K/V of its own.

Such heads are trained along with their target for the token after the next (depth 1), always on the target's hidden
states, and are asked for more at run time. `depth` above 1 unrolls the head over its own states instead, over K/V as
they are when drafting. Letters in shapes: B texts, T tokens, N rows, D the target's hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel, Qwen3Config
from transformers.modeling_layers import MtpLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding

from .distil import DEPTH_DECAY, MASKED, OFF_PATH, Teacher, token_loss
from .hf_model import softcapped, text_model
from .models.mtp_config import MtpHeadsConfig

PADDING = 0
# transformers' names of a head's parts, and those in checkpoints of Mellum and Qwen3.5.
NAMES = {
    "enorm.": "pre_fc_norm_embedding.",
    "hnorm.": "pre_fc_norm_hidden.",
    "eh_proj.": "fc.",
    "mtp_block.": "layers.0.",
    "post_norm.": "norm.",
}


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


def head_config(target: PretrainedConfig) -> MtpHeadsConfig:
    """A layer of the target's own shape."""
    return MtpHeadsConfig(**{name: getattr(target, name) for name in FIELDS})


def untrained(config: MtpHeadsConfig, target: PreTrainedModel) -> MtpLayer:
    """Random, but for the norm before the target's head, which expects this scale. Where the target is."""
    torch.manual_seed(0)
    head = new_head(config).to(target.device).train()
    with torch.no_grad():
        head.post_norm.weight.copy_(text_model(target).norm.weight)
    return head


def unroll(head: MtpLayer, teacher: Teacher, depth: int, count: int) -> Iterator[Tensor]:
    """Yields the state of draft k = 0.. from every row p = 0..N - 1, [B, N, D]: it is of token p + 2 + k.

    Draft 0 is fed the target's hidden state; draft k > 0 the state before it and the text's token p + 1 + k, and sees
    the K/V of rows 0..p and of its own drafts.
    """
    cache, state = DynamicCache(), teacher.hidden[:, :count]
    with teacher.tokens.device:
        rows, rotary = torch.arange(count), Qwen3RotaryEmbedding(head.config)
        past = torch.zeros(count, count).masked_fill(rows[None] > rows[:, None], MASKED)
        own = torch.full((count, count), MASKED).fill_diagonal_(0.0)
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


def head_loss(
    head: MtpLayer, teacher: Teacher, depth: int, rows: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:
    """Nats a draft, a scalar: towards the target's own distributions.

    Of all `rows` that have `depth` + 1 tokens after them, or of those given (int64 [N]): the head of a large vocabulary
    takes most of the time. What lies beyond a text's `lengths` [B] weighs nothing.
    """
    texts, length = teacher.tokens.shape
    total, count = 0.0, length - depth
    with teacher.tokens.device:
        rows = torch.arange(count) if rows is None else rows
        lengths = torch.full((texts,), length) if lengths is None else lengths
        loss, weight = torch.zeros(()), torch.ones(texts, len(rows))
    for k, state in enumerate(unroll(head, teacher, depth, count)):
        wanted = teacher.logits(rows + k + 1)
        weight = weight * (rows + k + 1 < lengths[:, None])
        each = weight * token_loss(logits(teacher, state[:, rows]), wanted)
        loss = loss + DEPTH_DECAY**k * each.sum() / weight.sum().clamp_min(1e-6)
        total += DEPTH_DECAY**k
        if k + 1 < depth:  # where the text leaves the target's choice, later drafts would not be reached
            weight = weight * torch.where(teacher.tokens[:, rows + k + 2] == wanted.argmax(-1), 1.0, OFF_PATH)
    return loss / total


def logits(teacher: Teacher, state: Tensor) -> Tensor:
    """By the target's head, with its softcap: [B, N, D] -> float32 [B, N, V]."""
    head = teacher.target.lm_head
    return softcapped(head(state.to(head.weight.dtype)).float(), teacher.target)


@torch.no_grad()
def accepted(head: MtpLayer, teacher: Teacher, drafts: int, drafted: Tensor | None = None) -> Tensor:
    """How many drafts from each row are the text's own tokens, up to the first that is not: int64 [B, T - 1].

    `drafted` [M] are the tokens that can be, None being all of them.
    """
    padded = replace(teacher, tokens=pad(teacher.tokens, (0, drafts), value=PADDING))
    count = teacher.tokens.shape[1] - 1
    rows = torch.arange(count, device=teacher.tokens.device)
    matches = []
    for k, state in enumerate(unroll(head, padded, drafts, count)):
        scores = logits(teacher, state)
        best = scores.argmax(-1) if drafted is None else drafted[scores[..., drafted].argmax(-1)]
        matches.append(best == padded.tokens[:, rows + k + 2])
    return torch.stack(matches).long().cumprod(0).sum(0)


def checkpoint_name(name: str) -> str:
    """Of a weight that transformers' `MtpLayer` has as `name`."""
    part = next(part for part in NAMES if name.startswith(part))
    return f"mtp.{NAMES[part]}{name.removeprefix(part)}"


def own_head(target: PreTrainedModel, drafted: Tensor) -> dict[str, Tensor]:
    """The target's head for the tokens `drafted` [M] only, under the names of a checkpoint."""
    rows = torch.full((target.config.vocab_size,), len(drafted), device=drafted.device)
    rows[drafted] = torch.arange(len(drafted), device=drafted.device)
    return {"mtp.lm_head.weight": target.lm_head.weight[drafted].to(torch.bfloat16), "mtp.token_rows": rows}


def save_head(
    head: MtpLayer, config: MtpHeadsConfig, folder: Path, own: Mapping[str, Tensor] = MappingProxyType({})
) -> None:
    """bfloat16, under the names of a checkpoint. `own` is what `own_head` gives."""
    weights = {checkpoint_name(name): weight.to(torch.bfloat16) for name, weight in head.state_dict().items()}
    weights |= own
    config.draft_vocab_size = len(own["mtp.lm_head.weight"]) if own else None
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load_head(folder: Path) -> MtpLayer:
    """What `save_head` wrote, as transformers' module in float32."""
    head = new_head(MtpHeadsConfig.from_pretrained(folder))
    stored = load_file(folder / "model.safetensors")
    head.load_state_dict({name: stored[checkpoint_name(name)] for name in head.state_dict()})
    return head.eval().requires_grad_(False)
