"""Trains the embedded pair's drafter (see `export/distil.py`), then its centroid head."""

from __future__ import annotations

import time

import torch
from torch import Tensor
from transformers import Gemma4AssistantForCausalLM, Gemma4ForCausalLM

from ..distil import centroid_loss, distillation_loss, teach, unroll
from ..muon import Optimizer
from .configs import CENTROIDS, CENTROIDS_READ, drafter_config, soften_attention
from .training import LENGTH, Batches

ANCHORS = 100


def train_drafter(
    target: Gemma4ForCausalLM, training: Batches, written: Tensor, steps: int, depth: int = 6
) -> Gemma4AssistantForCausalLM:
    torch.manual_seed(0)
    config = drafter_config(target.config, centroids=False)
    drafter = Gemma4AssistantForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    soften_attention(drafter)
    with torch.no_grad():  # start the output table from the target's, in its best projection to the smaller size
        u, s, _ = torch.linalg.svd(target.lm_head.weight, full_matrices=False)
        drafter.lm_head.weight.copy_((u * s)[:, : drafter.lm_head.weight.shape[1]])
    drafter.train()
    optimizer, random, started = (
        Optimizer(drafter),
        torch.Generator().manual_seed(3),
        time.process_time(),
    )
    for index in range(steps):
        unrolled = min(depth, 2 + index * depth // max(1, steps // 3))
        tokens = _mixed(training, written, 6, random)
        teacher = teach(target, tokens)
        anchors = torch.randperm(LENGTH - unrolled - 1, generator=random)[:ANCHORS].sort().values
        weight, lengths = torch.ones(len(tokens), len(anchors)), torch.full((len(tokens),), LENGTH)
        loss = distillation_loss(drafter, teacher, unrolled, anchors, weight, lengths)
        loss.backward()
        optimizer.step(index, index / steps)
        if index % 50 == 49:
            minutes = (time.process_time() - started) / 60
            print(
                f"drafter {index + 1}/{steps}: loss {loss.item():.3f}, {minutes:.1f} CPU minutes",
                flush=True,
            )
    return drafter.eval()


def add_centroid_head(
    target: Gemma4ForCausalLM,
    dense: Gemma4AssistantForCausalLM,
    training: Batches,
    written: Tensor,
    steps: int,
) -> Gemma4AssistantForCausalLM:
    """Groups the head's rows into equal clusters, then trains the centroids to find the target's choice."""
    torch.manual_seed(0)
    config = drafter_config(target.config, centroids=True)
    drafter = Gemma4AssistantForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    drafter.load_state_dict(dense.state_dict(), strict=False)
    rows = drafter.lm_head.weight.detach()
    cluster = _balanced_clusters(rows, CENTROIDS)
    head = drafter.masked_embedding
    with torch.no_grad():
        head.token_ordering.copy_(cluster.argsort(stable=True))
        head.centroids.weight.copy_(torch.stack([rows[cluster == c].mean(0) for c in range(CENTROIDS)]))
    drafter.requires_grad_(False)
    head.centroids.weight.requires_grad_(True)
    optimizer, random = (
        torch.optim.AdamW([head.centroids.weight], lr=3e-3, weight_decay=0.0),
        torch.Generator(),
    )
    anchors = torch.arange(LENGTH - 5)
    for index in range(steps):
        tokens = _mixed(training, written, 4, random)
        teacher = teach(target, tokens)
        loss, found = torch.zeros(()), 0.0
        for k, state in enumerate(unroll(drafter, teacher, 4, anchors)):
            wanted = teacher.logits(anchors + k + 1)
            loss = loss + centroid_loss(head, state.detach(), wanted).mean() / 4
            best = head.centroids(state).topk(CENTROIDS_READ, -1).indices
            found += (best == cluster[wanted.argmax(-1)][..., None]).any(-1).float().mean().item() / 4
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if index % 20 == 19:
            print(f"centroids {index + 1}/{steps}: loss {loss.item():.3f}, choice found {found:.3f}", flush=True)
    return drafter.eval()


def _mixed(training: Batches, written: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Half held text, half the target's own: [count, LENGTH]."""
    own = written[torch.randint(0, len(written), (count // 2,), generator=random)]
    return torch.cat([training.draw(count - count // 2), own])


def _balanced_clusters(rows: Tensor, count: int) -> Tensor:
    """Spherical k-means with equal cluster sizes: the cluster of each row, int64 [rows]."""
    size = len(rows) // count
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-6)
    centres = unit[torch.randperm(len(rows))[:count]].clone()
    cluster = torch.zeros(len(rows), dtype=torch.int64)
    for _ in range(25):
        similarity = unit @ centres.T
        preferred = similarity.argsort(1, descending=True).tolist()
        room = [size] * count
        for row in similarity.max(1).values.argsort(descending=True).tolist():
            best = next(c for c in preferred[row] if room[c])
            room[best] -= 1
            cluster[row] = best
        centres = torch.stack([unit[cluster == c].mean(0) for c in range(count)])
        centres = centres / centres.norm(dim=1, keepdim=True)
    return cluster
