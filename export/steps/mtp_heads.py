"""Native MTP heads: decoder layers with K/V of their own, over the target's hidden state beside the next token.

Each head is a family of graphs of its own, over layer k of the drafter's K/V: `mtp_heads_W` is head 0, `mtp_heads_k_W`
head k. A graph takes W rows: states (the target's, or head k - 1's of the same rows) beside the tokens k + 1 positions
on, and gives the head's states of those rows. One is used for all drafts. Of several each makes one draft, so a round
has at most as many, and calls heads 0, 1, ... once each, the target's head after each: first over the rows that were
committed, the last of which drafts; then each over the rows that the head before has just read. Row p of head k needs
the token of position p + 1 + k. That of the last k rows is a draft: they are read again by the round in which other
tokens have come, and only by that one. `runtime/drafters/mtp_heads.py` has the rounds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn
from transformers import PretrainedConfig

from pocketdraft.runtime.drafter_specs import MTPHeadsSpec
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.graphs import GraphSpec

from ..checkpoint import Checkpoint
from ..kv_int8 import open_kv
from ..kv_layout import KVLayout
from ..models.decoder import Target
from ..models.mtp_heads import HeadGeometry, MtpHead, MtpHeads
from ..plan import Plan
from ..step import Operators, Step, spec
from .target import Wants, head_step

KIND = "mtp_heads"
MODEL_TYPES = ("pocketdraft_mtp_heads",)
LAYER = re.compile(r"layers\.(\d+)\.(?:mtp_block\.|transformer_block\.)?(.+)\.(weight)")
# Of a layer that has its own projection and norms: its names by those that checkpoints give them.
PARTS = {
    **dict.fromkeys(("enorm", "embed_norm"), "pre_fc_norm_embedding"),
    **dict.fromkeys(("hnorm", "hidden_norm"), "pre_fc_norm_hidden"),
    **dict.fromkeys(("eh_proj", "input_proj"), "fc"),
    **dict.fromkeys(("post_norm", "shared_head.norm"), "norm"),
}
THE_TARGET_S = ("embed_tokens", "shared_head.head")  # copies, as transformers takes them


def facts(target: Checkpoint, drafter: Checkpoint) -> Iterator[tuple[str, object, object]]:
    """What must agree: what it is, the target's value, the drafter's."""
    yield "hidden size", target.text_config.hidden_size, drafter.config.hidden_size
    yield "vocabulary size", target.text_config.vocab_size, drafter.config.vocab_size


def make(config: PretrainedConfig, target: Target) -> MtpHead | MtpHeads:
    """Raises PocketdraftError for heads that the graphs do not cover."""
    count, geometry = config.num_mtp_layers, HeadGeometry.from_config(config)
    kinds = sorted(set(getattr(config, "mtp_layer_types", None) or ()))
    found = f"{count} MTP layers"
    if geometry.draft_vocab:
        found += " and an lm_head of their own"
    if len(kinds) > 1:
        found += f" of the kinds {' and '.join(kinds)}"
    if hasattr(config, "chain_hidden_post_norm"):
        found += " without norms of their own at the end"
    if count < 1 or (count > 1 and found != f"{count} MTP layers"):
        raise PocketdraftError(
            f"The checkpoint has {found}; pocketdraft exports one, or several of one kind with their own norms and the "
            "target's lm_head: give such ones, or the first alone with num_mtp_layers 1."
        )
    return MtpHead(geometry) if count == 1 else MtpHeads(geometry, count)


def own_name(name: str, config: PretrainedConfig) -> str | None:
    """Raises PocketdraftError for a weight that several layers share."""
    own, count = name.removeprefix("model.").removeprefix("mtp."), config.num_mtp_layers
    match = LAYER.fullmatch(own)
    if match is None:
        if count > 1:
            raise PocketdraftError(
                f"The checkpoint has one {name} for {count} MTP layers; pocketdraft, as transformers, runs layers that "
                "each have their own: give the first alone with num_mtp_layers 1."
            )
        return own
    number, part, leaf = int(match[1]), match[2], match[3]
    if part in THE_TARGET_S:
        return None
    number -= config.num_hidden_layers if number >= config.num_hidden_layers else 0
    prefix = "" if number == 0 and count == 1 else f"heads.{number}."
    return f"{prefix}{PARTS.get(part, f'layers.0.{part}')}.{leaf}"


def tied(model: MtpHead | MtpHeads) -> dict[str, str]:
    return {}


def wants(model: MtpHead | MtpHeads) -> Wants:
    return Wants(prefill_hidden=True, heads=() if _heads(model)[0].geometry.draft_vocab else (1,))


def describe(model: MtpHead | MtpHeads, plan: Plan, target: Target) -> MTPHeadsSpec:
    return MTPHeadsSpec(heads=len(_heads(model, plan)))


def steps(
    model: MtpHead | MtpHeads, plan: Plan, target: Target, target_kv: KVLayout, operators: Operators
) -> list[Step]:
    """Each head for every number of tokens that the target commits at once. An lm_head of its own is
    `mtp_heads_head`, in the place of the target's `head_1`."""
    heads = _heads(model, plan)
    g = heads[0].geometry
    layout = KVLayout.own(KIND, len(heads), g.size.kv_heads, g.size.head_dim, plan.context)
    rows = ("embeddings", "activations")

    def step(head: MtpHead, width: int) -> Step:
        kv = layout.tensors({head.index})
        graph = GraphSpec(
            name=f"mtp_heads_{head.index}_{width}" if head.index else f"mtp_heads_{width}",
            role="mtp_heads",
            part="mtp_heads",
            width=width,
            inputs=(
                *(spec(name, "float32", 1, width, g.size.hidden) for name in rows),
                spec("input_pos", "int32", width),
                spec("mask", "bool", 1, 1, width, plan.context),
                *kv,
                *operators.inputs,
            ),
            outputs=(spec("projected_activations", "float32", 1, width, g.size.hidden), *kv),
        )
        return Step(graph, _Head(head, layout, operators).eval())

    steps = [step(head, width) for head in heads for width in sorted({1, *plan.prefill, *plan.verify})]
    if g.draft_vocab:
        steps.append(head_step(_OwnHead(heads[0]), "mtp_heads_head", "mtp_heads", (1, g.size.hidden, g.vocab)))
    return steps


def _heads(model: MtpHead | MtpHeads, plan: Plan | None = None) -> list[MtpHead]:
    """All, or as many as a plan's widest verify takes drafts."""
    if isinstance(model, MtpHead):
        return [model]
    return cast(list[MtpHead], list(model.heads))[: max(plan.verify) - 1 if plan else None]


class _OwnHead(nn.Module):
    def __init__(self, model: MtpHead) -> None:
        super().__init__()
        self.model = model

    def forward(self, activations: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model.logits(activations)}


class _Head(nn.Module):
    def __init__(self, model: MtpHead, layout: KVLayout, operators: Operators) -> None:
        super().__init__()
        # Weights go by their path: those of another head are others.
        self.path = f"model_{model.index}" if model.index else "model"
        self.add_module(self.path, model)
        self.operators, self.owner = operators, layout.owner

    def forward(
        self, embeddings: Tensor, activations: Tensor, input_pos: Tensor, mask: Tensor, **kv_cache: Tensor
    ) -> dict[str, Tensor]:
        start, last = input_pos[:1], input_pos[-1:]
        kv = open_kv((), kv_cache, start, last, mask.shape[-1], self.operators, self.owner)
        hidden = self.get_submodule(self.path)(embeddings, activations, input_pos, mask, kv)
        return {"projected_activations": hidden, **kv.tensors}
