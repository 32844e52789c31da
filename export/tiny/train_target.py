"""Trains the target on the four texts, and lets it write the text that its drafter learns from."""

from __future__ import annotations

import time

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Gemma4ForCausalLM

from ..muon import Optimizer
from .configs import soften_attention, target_config
from .corpus import DOMAINS
from .training import LENGTH, Batches

# Real checkpoints carry scalars other than 1 (a buffer, which the optimizer never moves).
LAYER_SCALARS = (1.0, 0.875, 1.125, 0.9375, 1.0625, 0.75)


def train_target(training: Batches, held_out: Batches, steps: int) -> Gemma4ForCausalLM:
    torch.manual_seed(0)
    model = Gemma4ForCausalLM._from_config(target_config(), attn_implementation="sdpa", dtype=torch.float32)
    soften_attention(model)
    for layer, scalar in zip(model.model.layers, LAYER_SCALARS, strict=True):
        layer.layer_scalar.fill_(scalar)
    model.train()
    optimizer = Optimizer(model)
    started = time.process_time()
    for index in range(steps):
        tokens = training.draw(8, LENGTH + 1)
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step(index, index / steps)
        if index % 50 == 49:
            minutes = (time.process_time() - started) / 60
            print(f"target {index + 1}/{steps}: loss {loss.item():.3f}, {minutes:.1f} CPU minutes", flush=True)
    model.eval()
    print("held-out loss", held_out_loss(model, held_out), flush=True)
    return model


@torch.no_grad()
def held_out_loss(model: Gemma4ForCausalLM, held_out: Batches) -> dict[str, float]:
    """Nats per token, by domain."""
    losses = {}
    for domain in DOMAINS:
        tokens = held_out.draw(16, LENGTH + 1, domain)
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        losses[domain] = round(cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item(), 3)
    return losses


@torch.no_grad()
def write_text(model: Gemma4ForCausalLM, training: Batches, count: int) -> Tensor:
    """int64 [count, LENGTH]: the target's own continuations, half greedy and half sampled at temperature 1."""
    torch.manual_seed(5)
    batches = []
    for index in range(count // 64):
        prompt = training.draw(64, (32, 64, 96, 48)[index % 4])
        new = LENGTH - prompt.shape[1]
        sampled = index % 2 == 1
        options = {"do_sample": True, "temperature": 1.0, "top_k": 0} if sampled else {"do_sample": False}
        batches.append(model.generate(prompt, max_new_tokens=new, min_new_tokens=new, pad_token_id=0, **options))
        print(f"text {64 * (index + 1)}/{count}", flush=True)
    return torch.cat(batches)
