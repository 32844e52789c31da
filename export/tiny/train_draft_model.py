"""Trains the independent draft model: a smaller Gemma 4, distilled from the embedded target.

It drafts as any language model writes, one token after another over K/V of its own, and sees nothing of the target
but its tokens: every position of a text is a lesson, and no unrolling is needed.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Gemma4ForCausalLM

from ..distil import token_loss
from ..hf_compat import patch_transformers
from ..muon import Optimizer
from .configs import draft_model_config, soften_attention
from .train_drafter import _mixed
from .training import Batches

TEXTS = 6  # of a step


def train_draft_model(target: Gemma4ForCausalLM, training: Batches, written: Tensor, steps: int) -> Gemma4ForCausalLM:
    """`written`, int64 [texts, LENGTH], is the target's own text: half of what is learned from."""
    model = new_draft_model(target).train()
    optimizer, random, started = Optimizer(model), torch.Generator().manual_seed(5), time.process_time()
    for index in range(steps):
        tokens = _mixed(training, written, TEXTS, random)
        with torch.no_grad():
            wanted = target(input_ids=tokens, use_cache=False).logits
        loss = token_loss(model(input_ids=tokens, use_cache=False).logits, wanted).mean()
        loss.backward()
        optimizer.step(index, index / steps)
        if index % 50 == 49:
            minutes = (time.process_time() - started) / 60
            print(f"draft model {index + 1}/{steps}: loss {loss.item():.3f}, {minutes:.1f} CPU minutes", flush=True)
    return model.eval()


@torch.no_grad()
def new_draft_model(target: Gemma4ForCausalLM) -> Gemma4ForCausalLM:
    """Untrained; its embedding starts as the target's, in the best projection to the smaller size."""
    patch_transformers()
    torch.manual_seed(0)
    config = draft_model_config(target.config)
    model = Gemma4ForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    soften_attention(model)
    u, s, _ = torch.linalg.svd(target.lm_head.weight, full_matrices=False)
    model.lm_head.weight.copy_((u * s)[:, : config.hidden_size])
    return model


@torch.no_grad()
def accepted(model: Gemma4ForCausalLM, tokens: Tensor, drafts: int) -> Tensor:
    """How many drafts are the text's own tokens, up to the first that is not: int64 [B, T - 1] for `tokens` [B, T].

    Entry p counts drafts of the tokens from p + 2 on. A draft that stands is what the text goes on with, so that one
    pass over the text gives all drafts.
    """
    stands = model(input_ids=tokens, use_cache=False).logits.argmax(-1)[:, :-1] == tokens[:, 1:]
    rows = torch.arange(tokens.shape[1] - 1)
    stands = pad(stands, (0, drafts + 1))  # nothing follows the text
    return torch.stack([stands[:, rows + 1 + k] for k in range(drafts)]).long().cumprod(0).sum(0)
