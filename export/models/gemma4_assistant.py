"""Gemma 4's MTP drafter (`Gemma4AssistantForCausalLM`), written for export.

The same arithmetic as transformers' `modeling_gemma4_assistant.py`, with static shapes. Its trunk is the
target's with layers that own no K/V. Letters in shapes are those of `gemma4.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from . import decoder
from .gemma4 import Geometry, Trunk
from .layers import linear


class CentroidHead(nn.Module):
    """Logits of the tokens under the best centroids only (E2B's and E4B's drafters).

    `token_ordering` lists the vocabulary centroid by centroid. Only the selected rows of the head are read;
    the others come out at one below the least selected logit, as in transformers' masked embedder.
    """

    def __init__(self, vocab: int, hidden: int, centroids: int, top: int) -> None:
        super().__init__()
        self.vocab, self.count, self.top = vocab, centroids, top
        self.centroids = linear(hidden, centroids)
        self.rows = nn.Embedding(vocab, hidden)  # tied to the drafter's lm_head
        self.token_ordering = nn.Parameter(torch.empty(vocab, dtype=torch.int64), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[1, 1, D] -> logits [1, 1, V]."""
        best = torch.topk(self.centroids(hidden)[0, 0], self.top).indices
        members = self.token_ordering.to(torch.int32).reshape(self.count, -1)[best].reshape(-1)
        selected = nn.functional.linear(hidden[0], self.rows(members))
        floor = selected.amin(-1) - 1.0
        # Scattered in one dimension, onto zeros: onto a broadcast floor, LiteRT takes six times as long at E2B's size.
        above = torch.zeros(self.vocab).index_copy(0, members.to(torch.int64), selected[0] - floor)
        return (above + floor)[None, None]


class Drafter(nn.Module):
    """`Gemma4AssistantForCausalLM`: one draft step over the target's K/V, of which it owns none.

    `centroids` 0 means that the checkpoint has no centroid head.
    """

    def __init__(self, geometry: Geometry, backbone: int, centroids: int, top: int) -> None:
        super().__init__()
        self.geometry = geometry
        self.trunk = Trunk(geometry)
        self.pre_projection = linear(2 * backbone, geometry.hidden)
        self.post_projection = linear(geometry.hidden, backbone)
        self.lm_head = linear(geometry.hidden, geometry.vocab)
        self.has_centroids = centroids > 0
        if centroids:
            self.masked_embedding = CentroidHead(geometry.vocab, geometry.hidden, centroids, top)


def make_drafter(config: PretrainedConfig, target: decoder.Geometry) -> Drafter:
    """Without weights, from a `Gemma4AssistantConfig`."""
    count = config.num_centroids if config.use_ordered_embeddings else 0
    geometry = Geometry.from_config(config.get_text_config(), target)
    return Drafter(geometry, config.backbone_hidden_size, count, config.centroid_intermediate_top_k)
