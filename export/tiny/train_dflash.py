"""Trains the embedded target's DFlash drafter: blocks of one known token and masks, denoised in one pass.

A text trains many blocks at once. A block's anchor is a token of the text; its 15 masks stand for the tokens after
it. A block sees the target's hidden states of the tokens before its anchor, and itself. Letters in shapes: B texts,
T tokens, N anchors, W block size, D hidden size, V vocabulary, n taps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Gemma4ForCausalLM, MuseGlimmerAssistantModel, PreTrainedModel

from ..distil import MASKED, OFF_PATH, Teacher, token_loss
from ..hf_model import text_model
from ..muon import Optimizer
from .configs import FULL, dflash_config
from .train_drafter import _mixed
from .training import LENGTH, Batches

TEXTS, ANCHORS = 4, 16  # of a step; anchors of each text
DECAY = 7.0  # position k of a block of 16 weighs exp(-(k - 1) / 7), as in the paper
OUTPUT_GAIN = 4.0  # see `overrule_mask`


@dataclass(frozen=True)
class Tapped(Teacher):
    """One pass of the target, and what the drafter's context is made of: [B, T, n * D]."""

    taps: Tensor


@torch.no_grad()
def tap(target: PreTrainedModel, tokens: Tensor, layers: list[int]) -> Tapped:
    """`layers` are those whose output is tapped; of the last one transformers gives it after the final norm only."""
    output = text_model(target)(input_ids=tokens, use_cache=False, output_hidden_states=True)
    taps = torch.cat([output.hidden_states[layer + 1] for layer in layers], -1)
    return Tapped(target, tokens, output.last_hidden_state, {}, taps)


def denoise(drafter: MuseGlimmerAssistantModel, teacher: Tapped, anchors: Tensor) -> Tensor:
    """The state before the head of each block's masks: [B, N, W - 1, D]."""
    size, (texts, length) = drafter.config.block_size, teacher.tokens.shape
    noise = torch.full((texts, len(anchors), size), drafter.config.mask_token_id)
    noise[..., 0] = teacher.tokens[:, anchors]
    inside = (anchors[:, None] + torch.arange(size)).flatten()
    hidden = drafter(
        noise_embeds=text_model(teacher.target).embed_tokens(noise.flatten(1)),
        context_hidden_states=teacher.taps,
        attention_mask={FULL: block_mask(anchors, size, length)},
        position_ids=torch.cat([torch.arange(length), inside])[None],
    ).last_hidden_state
    return hidden.unflatten(1, (len(anchors), size))[:, :, 1:]


def block_mask(anchors: Tensor, size: int, length: int) -> Tensor:
    """Additive [1, 1, N * W, T + N * W]: a block sees what lies before its anchor, and all of itself."""
    start = anchors.repeat_interleave(size)
    block = torch.arange(len(anchors)).repeat_interleave(size)
    seen = torch.cat([torch.arange(length)[None] < start[:, None], block[None] == block[:, None]], 1)
    return torch.zeros(seen.shape).masked_fill(~seen, MASKED)[None, None]


def block_loss(drafter: MuseGlimmerAssistantModel, teacher: Tapped, anchors: Tensor) -> Tensor:
    """Nats a draft, a scalar: half KL from the target's distribution, half cross entropy of the target's choice.

    Positions weigh less the further they are from the anchor, and less after each token of the text that the target
    would not have chosen: a draft after it would not be reached.
    """
    drafted = torch.arange(1, drafter.config.block_size)
    at = anchors[:, None] + drafted
    wanted = teacher.logits(at - 1)
    each = token_loss(teacher.target.lm_head(denoise(drafter, teacher, anchors)), wanted)
    strayed = (teacher.tokens[:, at] != wanted.argmax(-1)).cumsum(-1)[..., :-1]
    weight = torch.exp(-(drafted - 1) / DECAY) * OFF_PATH ** pad(strayed, (1, 0))
    return (each * weight).sum() / weight.sum()


def train_dflash(
    target: Gemma4ForCausalLM, training: Batches, written: Tensor, steps: int
) -> MuseGlimmerAssistantModel:
    torch.manual_seed(0)
    config = dflash_config(target.config)
    drafter = MuseGlimmerAssistantModel._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    overrule_mask(drafter)
    drafter.train()
    optimizer, random, started = Optimizer(drafter), torch.Generator().manual_seed(3), time.process_time()
    for index in range(steps):
        teacher = tap(target, _mixed(training, written, TEXTS, random), config.target_layer_ids)
        anchors = torch.randperm(LENGTH - config.block_size, generator=random)[:ANCHORS].sort().values
        loss = block_loss(drafter, teacher, anchors)
        loss.backward()
        optimizer.step(index, index / steps)
        if index % 50 == 49:
            minutes = (time.process_time() - started) / 60
            print(f"dflash {index + 1}/{steps}: loss {loss.item():.3f}, {minutes:.1f} CPU minutes", flush=True)
    return drafter.eval()


@torch.no_grad()
def overrule_mask(drafter: MuseGlimmerAssistantModel) -> None:
    """Starts the layers' outputs large: by itself the residual stream says "mask", a long vector of the target's table.

    A token that the target never writes is far from all that it does write.
    """
    for name, weight in drafter.named_parameters():
        if weight.ndim == 2:
            gain = OUTPUT_GAIN if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            weight.normal_(0.0, gain * weight.shape[1] ** -0.5)


@torch.no_grad()
def accepted(drafter: MuseGlimmerAssistantModel, teacher: Tapped, anchors: Tensor) -> Tensor:
    """How many drafts after each anchor are the text's own tokens, up to the first that is not: int64 [B, N]."""
    at = anchors[:, None] + torch.arange(1, drafter.config.block_size)
    choices = teacher.target.lm_head(denoise(drafter, teacher, anchors)).argmax(-1)
    return (choices == teacher.tokens[:, at]).long().cumprod(-1).sum(-1)
