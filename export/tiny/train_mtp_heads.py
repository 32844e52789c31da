"""Trains a native MTP head for the embedded target: see `export/heads.py`."""

from __future__ import annotations

import time

import torch
from torch import Tensor
from transformers import Gemma4ForCausalLM
from transformers.modeling_layers import MtpLayer

from ..distil import teach
from ..heads import head_loss, untrained
from ..muon import Optimizer
from .configs import mtp_heads_config
from .train_drafter import _mixed
from .training import Batches

TEXTS = 6  # of a step


def train_mtp_head(
    target: Gemma4ForCausalLM, training: Batches, written: Tensor, steps: int, depth: int = 1
) -> MtpLayer:
    """`written`, int64 [texts, LENGTH], is the target's own text: half of what is learned from."""
    head = untrained(mtp_heads_config(target.config), target)
    optimizer, random, started = Optimizer(head), torch.Generator().manual_seed(9), time.process_time()
    for index in range(steps):
        loss = head_loss(head, teach(target, _mixed(training, written, TEXTS, random)), depth)
        loss.backward()
        optimizer.step(index, index / steps)
        if index % 50 == 49:
            minutes = (time.process_time() - started) / 60
            print(f"MTP head {index + 1}/{steps}: loss {loss.item():.3f}, {minutes:.1f} CPU minutes", flush=True)
    return head.eval()
