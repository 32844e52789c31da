"""How an MTP drafter learns from its target: on the target's hidden states and K/V, all anchors of a text at once.

From anchor t the drafter unrolls several drafts at the constant position t + 1 over the target's K/V of 0..t,
feeding back its own projected state: what it will do when drafting. Draft k = 0.. predicts token t + 2 + k.
Letters in shapes: B texts, T tokens, N anchors, D the target's hidden size, d the drafter's, V vocabulary,
C centroids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Gemma4AssistantForCausalLM, PreTrainedModel
from transformers.models.gemma4_assistant.modeling_gemma4_assistant import Gemma4AssistantMaskedEmbedder

from pocketdraft.runtime.stats import Stats

from .hf_compat import patch_for_training
from .hf_model import softcapped, text_model

DEPTH_DECAY = 0.85  # weight of draft k + 1 over draft k
HARD_SHARE = 0.5  # of the loss: the target's argmax; the rest is its distribution
OFF_PATH = 0.5  # weight of the drafts after a token that the target would not have chosen
MASKED = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Teacher:
    """One pass of the target over `tokens` [B, T]: hidden state after the final norm [B, T, D], the K/V it shares."""

    target: PreTrainedModel
    tokens: Tensor
    hidden: Tensor
    kv: dict[str, tuple[Tensor, Tensor]]

    @torch.no_grad()
    def logits(self, positions: Tensor) -> Tensor:
        """float32 [B, N, V], after the softcap."""
        dtype = text_model(self.target).dtype
        return softcapped(self.target.lm_head(self.hidden[:, positions].to(dtype)).float(), self.target)

    @torch.no_grad()
    def embed(self, positions: Tensor) -> Tensor:
        """The scaled embeddings, float32 [B, N, D]."""
        return text_model(self.target).embed_tokens(self.tokens[:, positions]).float()


@torch.no_grad()
def teach(target: PreTrainedModel, tokens: Tensor) -> Teacher:
    output = text_model(target)(input_ids=tokens, use_cache=False, return_shared_kv_states=True)
    shared = dict(getattr(output, "shared_kv_states", {}))  # only Gemma 4 gives any
    kv = {kind: (keys.float(), values.float()) for kind, (keys, values) in shared.items()}
    return Teacher(target, tokens, output.last_hidden_state.float(), kv)


def masks(anchors: Tensor, length: int, window: int) -> dict[str, Tensor]:
    """Additive [1, 1, N, T]: anchor t sees K/V of 0..t, on sliding layers those within the window."""
    slots, anchor = torch.arange(length, device=anchors.device)[None], anchors[:, None]
    full = slots <= anchor
    visible = {"full_attention": full, "sliding_attention": full & (slots > anchor + 1 - window)}
    return {
        kind: torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, MASKED)[None, None]
        for kind, seen in visible.items()
    }


def unroll(drafter: Gemma4AssistantForCausalLM, teacher: Teacher, depth: int, anchors: Tensor) -> Iterator[Tensor]:
    """Yields the state before the head for draft k = 0.., [B, N, d]."""
    patch_for_training()
    seen = masks(anchors, teacher.hidden.shape[1], drafter.config.get_text_config().sliding_window)
    positions = (anchors + 1)[None].expand(len(teacher.tokens), -1)
    state = teacher.hidden[:, anchors]
    for k in range(depth):
        hidden = drafter.model(
            inputs_embeds=drafter.pre_projection(torch.cat([teacher.embed(anchors + 1 + k), state], -1)),
            attention_mask=seen,
            position_ids=positions,
            shared_kv_states=teacher.kv,
            use_cache=False,
        ).last_hidden_state
        state = drafter.post_projection(hidden)
        yield hidden


def distillation_loss(
    drafter: Gemma4AssistantForCausalLM, teacher: Teacher, depth: int, anchors: Tensor, weight: Tensor, lengths: Tensor
) -> Tensor:
    """Nats a draft, a scalar. `weight` [B, N] of each anchor; what lies beyond a text's `lengths` [B] weighs nothing.

    A centroid head learns along, without a say in the states that it is given.
    """
    loss, total = torch.zeros((), device=weight.device), 0.0
    head = drafter.masked_embedding
    for k, state in enumerate(unroll(drafter, teacher, depth, anchors)):
        wanted = teacher.logits(anchors + k + 1)
        choice = wanted.argmax(-1)
        each = token_loss(drafter.lm_head(state), wanted)
        if head is not None:
            each = each + centroid_loss(head, state.detach(), wanted)
        weight = weight * (anchors + k + 2 < lengths[:, None])
        loss = loss + DEPTH_DECAY**k * (weight * each).sum() / weight.sum().clamp_min(1e-6)
        total += DEPTH_DECAY**k
        if k + 1 < depth:  # where the text leaves the target's choice, later drafts would not be reached
            weight = weight * torch.where(teacher.tokens[:, anchors + k + 2] == choice, 1.0, OFF_PATH)
    return loss / total


def token_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """KL from the target's distribution, and the cross entropy of its argmax: [B, N, V] twice -> nats [B, N]."""
    ours, theirs = logits.float().log_softmax(-1), wanted.float().log_softmax(-1)
    soft = (theirs.exp() * (theirs - ours)).sum(-1)
    hard = -ours.gather(-1, wanted.argmax(-1, keepdim=True))[..., 0]
    return (1 - HARD_SHARE) * soft + HARD_SHARE * hard


def centroid_loss(head: Gemma4AssistantMaskedEmbedder, state: Tensor, wanted: Tensor) -> Tensor:
    """Cross entropy of the centroids' scores and the target's distribution summed by centroid: [B, N]."""
    shares = wanted.softmax(-1)[..., head.token_ordering].unflatten(-1, (head.num_centroids, -1)).sum(-1)
    return -(shares * head.centroids(state).log_softmax(-1)).sum(-1)


@torch.no_grad()
def draft_tokens(drafter: Gemma4AssistantForCausalLM, state: Tensor) -> Tensor:
    """What is drafted from the state before the head, int64 [B, N]: of the best centroids' tokens, if it has some."""
    logits, head = drafter.lm_head(state), drafter.masked_embedding
    if head is not None:
        best = head.centroids(state).topk(head.centroid_intermediate_top_k, -1).indices
        read = torch.zeros(*state.shape[:-1], head.num_centroids, dtype=torch.bool, device=state.device)
        read = read.scatter(-1, best, True)
        size = len(head.token_ordering) // head.num_centroids
        centroid = head.token_ordering.argsort() // size  # of each token
        logits = logits.masked_fill(~read[..., centroid], MASKED)
    return logits.argmax(-1)


@torch.no_grad()
def accepted(drafter: Gemma4AssistantForCausalLM, teacher: Teacher, drafts: int, anchors: Tensor) -> Tensor:
    """How many drafts from each anchor are the text's own tokens, up to the first that is not: int64 [B, N]."""
    matches = []
    for k, state in enumerate(unroll(drafter, teacher, drafts, anchors)):
        matches.append(draft_tokens(drafter, state) == teacher.tokens[:, anchors + k + 2])
    return torch.stack(matches).long().cumprod(0).sum(0)


def replay(
    drafter: Gemma4AssistantForCausalLM, teacher: Teacher, prompt: int, budget: int, drafts: int, stats: Stats
) -> None:
    """Adds to `stats` the rounds of the draft-verify loop over one text, [1, T]: see `count_rounds`."""
    padded = replace(teacher, tokens=pad(teacher.tokens, (0, drafts)))
    anchors = torch.arange(prompt - 1, teacher.tokens.shape[1] - 1, device=teacher.tokens.device)
    count_rounds(accepted(drafter, padded, drafts, anchors)[0].tolist(), prompt, budget, drafts, stats)


def count_rounds(counts: list[int], prompt: int, budget: int, drafts: int, stats: Stats) -> None:
    """Adds to `stats` the rounds of the draft-verify loop over one text of T tokens.

    `counts` are of anchors prompt - 1 to T - 2: how many drafts each would have accepted. The target wrote its tokens
    after the first `prompt`: `budget` of them, or up to a stop token. This is no estimate then, but what
    `runtime.session` counts, in one pass: a round accepts the drafts that are the text's next tokens, and up to the
    first that is not, the drafter was fed what it is fed here. Only drafts after a stop token, which the text does not
    have, are not proposed.
    """
    length, last = prompt + len(counts), prompt + budget - 1
    stats.outcomes[0, 0] += 1  # the prompt's own round has no hidden state to draft from
    at = 0
    while at < len(counts) - 1:  # anchor prompt - 1 + at; the tokens up to the one after it are out
        next_token = prompt + at + 1
        proposed = min(drafts, last - next_token, length - next_token)
        count = min(counts[at], proposed)
        stats.outcomes[proposed, count] += 1
        at += count + 1
    stats.emitted += length - prompt
    stats.cut += at + 1 - (length - prompt)  # an accepted stop token leaves no room for the target's own
