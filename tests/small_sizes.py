"""Gemma 4's public sizes in small: widths divided, few layers, everything else as it is."""

from __future__ import annotations

from pocketdraft.export.sizes import Pair, configs, resized, with_text
from pocketdraft.export.sizes.random import cut
from pocketdraft.export.tiny.configs import CENTROIDS, CENTROIDS_READ, VOCABULARY

LAYERS = 7
SHARED = {
    "vocab_size": VOCABULARY,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 16,
    "max_position_embeddings": 1024,
    "dtype": None,
}


def small_pair(size: str) -> Pair:
    """Number and kind of layers by `cut`; heads, and experts in the order of a token's, stay as they are."""
    target, drafter = cut(configs(size), LAYERS)
    changes = SHARED | {"hidden_size": 64, "intermediate_size": 96}
    if getattr(target, "hidden_size_per_layer_input", 0):
        changes |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY}
    if getattr(target, "enable_moe_block", False):
        changes |= {"num_experts": 16, "top_k_experts": 4, "moe_intermediate_size": 32}
    own = {"backbone_hidden_size": 64, "num_centroids": CENTROIDS, "centroid_intermediate_top_k": CENTROIDS_READ}
    text = SHARED | {"hidden_size": 32, "intermediate_size": 64}
    return resized(target, changes), with_text(drafter, own, text)
