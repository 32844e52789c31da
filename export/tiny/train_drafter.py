"""Trains the MTP drafter on the target's hidden states and K/V, then its centroid head.

All anchors of a sequence are trained at once. From anchor t the drafter unrolls several steps at the constant
position t + 1 over the target's K/V of 0..t, feeding back its own projected state: what it will do when drafting.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import nll_loss, one_hot
from transformers import Gemma4AssistantForCausalLM, Gemma4ForCausalLM

from .configs import CENTROIDS, CENTROIDS_READ, drafter_config, soften_attention
from .training import LENGTH, Batches, Optimizer

DEPTH_DECAY = 0.85  # weight of draft k + 1 over draft k
HARD_SHARE = 0.5  # of the loss: the target's argmax; the rest is its distribution
ANCHORS = 100
MASKED = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Teacher:
    """One pass of the target over [B, T] tokens: logits, hidden state after the final norm, K/V it shares."""

    logits: Tensor
    hidden: Tensor
    kv: dict[str, tuple[Tensor, Tensor]]


@torch.no_grad()
def teach(target: Gemma4ForCausalLM, tokens: Tensor) -> Teacher:
    output = target(input_ids=tokens, use_cache=False, output_hidden_states=True, return_shared_kv_states=True)
    return Teacher(output.logits, output.hidden_states[-1], dict(output.shared_kv_states))


def masks(anchors: Tensor, length: int, window: int) -> dict[str, Tensor]:
    """Additive [1, 1, anchors, length]: anchor t sees K/V of 0..t, on sliding layers those within the window."""
    slots, anchor = torch.arange(length)[None], anchors[:, None]
    full = slots <= anchor
    visible = {"full_attention": full, "sliding_attention": full & (slots > anchor + 1 - window)}
    return {kind: torch.zeros(seen.shape).masked_fill(~seen, MASKED)[None, None] for kind, seen in visible.items()}


def unroll(
    drafter: Gemma4AssistantForCausalLM,
    embed: torch.nn.Module,
    tokens: Tensor,
    teacher: Teacher,
    depth: int,
    anchors: Tensor,
) -> Iterator[Tensor]:
    """Yields the state before the head for draft k = 0.., [B, anchors, hidden]; it predicts tokens[anchor + 2 + k]."""
    seen = masks(anchors, tokens.shape[1], drafter.config.get_text_config().sliding_window)
    positions = (anchors + 1)[None].expand(tokens.shape[0], -1)
    state = teacher.hidden[:, anchors]
    for k in range(depth):
        inputs = torch.cat([embed(tokens[:, anchors + 1 + k]), state], -1)
        hidden = drafter.model(
            inputs_embeds=drafter.pre_projection(inputs),
            attention_mask=seen,
            position_ids=positions,
            shared_kv_states=teacher.kv,
            use_cache=False,
        ).last_hidden_state
        state = drafter.post_projection(hidden)
        yield hidden


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
        Optimizer(drafter, steps),
        torch.Generator().manual_seed(3),
        time.process_time(),
    )
    for index in range(steps):
        unrolled = min(depth, 2 + index * depth // max(1, steps // 3))
        tokens = _mixed(training, written, 6, random)
        teacher = teach(target, tokens)
        anchors = torch.randperm(LENGTH - unrolled - 1, generator=random)[:ANCHORS].sort().values
        loss, total = torch.zeros(()), 0.0
        weight = torch.ones(len(tokens), len(anchors))
        states = unroll(drafter, target.get_input_embeddings(), tokens, teacher, unrolled, anchors)
        for k, state in enumerate(states):
            wanted = teacher.logits[:, anchors + k + 1]
            choice = wanted.argmax(-1)
            each = _loss(drafter.lm_head(state), wanted, choice)
            loss = loss + DEPTH_DECAY**k * (weight * each).sum() / weight.sum()
            total += DEPTH_DECAY**k
            if k + 1 < unrolled:  # where the text leaves the target's choice, later drafts would not be reached
                weight = weight * torch.where(tokens[:, anchors + k + 2] == choice, 1.0, 0.5)
        (loss / total).backward()
        optimizer.step(index)
        if index % 50 == 49:
            minutes = (time.process_time() - started) / 60
            print(
                f"drafter {index + 1}/{steps}: loss {loss.item() / total:.3f}, {minutes:.1f} CPU minutes",
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
    member = one_hot(cluster, CENTROIDS).float()
    anchors = torch.arange(LENGTH - 5)
    for index in range(steps):
        tokens = _mixed(training, written, 4, random)
        teacher = teach(target, tokens)
        loss, found = torch.zeros(()), 0.0
        for k, state in enumerate(unroll(drafter, target.get_input_embeddings(), tokens, teacher, 4, anchors)):
            wanted = teacher.logits[:, anchors + k + 1].softmax(-1)
            scores = head.centroids(state.detach())
            loss = loss - ((wanted @ member) * scores.log_softmax(-1)).sum(-1).mean() / 4
            best = scores.topk(CENTROIDS_READ, -1).indices
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


def _loss(logits: Tensor, wanted: Tensor, choice: Tensor) -> Tensor:
    """KL from the target's distribution, and the cross entropy of its argmax: [B, anchors]."""
    ours, theirs = logits.float().log_softmax(-1), wanted.float().log_softmax(-1)
    soft = (theirs.exp() * (theirs - ours)).sum(-1)
    hard = nll_loss(ours.flatten(0, 1), choice.flatten(), reduction="none").view_as(soft)
    return (1 - HARD_SHARE) * soft + HARD_SHARE * hard


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
