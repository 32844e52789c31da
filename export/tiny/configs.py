"""Configurations in small: E2B's shape (the trained pair), and 12B's and 31B's shape (random weights, for tests)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma4AssistantConfig,
    Gemma4TextConfig,
    MuseGlimmerAssistantConfig,
    PreTrainedModel,
)

from ..hf_compat import patch_transformers
from ..models.mtp_config import MtpHeadsConfig

VOCABULARY = 2048
CENTROIDS, CENTROIDS_READ = 64, 8
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
MASK_TOKEN = 3  # <unk>, which a byte-level tokenizer never writes
SLIDING, FULL = "sliding_attention", "full_attention"


def target_config() -> Gemma4TextConfig:
    """Per-layer embeddings, the last half of the layers KV-shared and double-wide, sliding and full mixed."""
    return Gemma4TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=6,
        layer_types=[SLIDING, SLIDING, FULL] * 2,
        num_kv_shared_layers=3,
        use_double_wide_mlp=True,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        global_head_dim=64,
        sliding_window=64,
        hidden_size_per_layer_input=16,
        vocab_size_per_layer_input=VOCABULARY,
        final_logit_softcapping=30.0,
        max_position_embeddings=1024,
        **SPECIAL,
    )


def dense_target_config() -> Gemma4TextConfig:
    """No per-layer embeddings, no KV sharing, V is K on full layers."""
    return Gemma4TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        layer_types=[SLIDING] * 5 + [FULL],
        num_kv_shared_layers=0,
        attention_k_eq_v=True,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_global_key_value_heads=1,
        head_dim=32,
        global_head_dim=64,
        sliding_window=16,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=0,
        final_logit_softcapping=30.0,
        max_position_embeddings=1024,
        **SPECIAL,
    )


def drafter_config(target: Gemma4TextConfig, centroids: bool, hidden: int = 64) -> Gemma4AssistantConfig:
    """Four layers, three sliding and one full, all reading the target's K/V."""
    own = target.per_layer_config
    sliding, full = (own[target.layer_types.index(kind)] for kind in (SLIDING, FULL))
    text = Gemma4TextConfig(
        vocab_size=target.vocab_size,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=4,
        layer_types=[SLIDING] * 3 + [FULL],
        num_kv_shared_layers=4,
        num_attention_heads=4,
        num_key_value_heads=sliding.num_key_value_heads,
        num_global_key_value_heads=full.num_key_value_heads if target.attention_k_eq_v else None,
        attention_k_eq_v=target.attention_k_eq_v,
        head_dim=sliding.head_dim,
        global_head_dim=full.head_dim,
        sliding_window=target.sliding_window,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=0,
        max_position_embeddings=target.max_position_embeddings,
        **SPECIAL,
    )
    return Gemma4AssistantConfig(
        text_config=text,
        backbone_hidden_size=target.hidden_size,
        use_ordered_embeddings=centroids,
        num_centroids=CENTROIDS,
        centroid_intermediate_top_k=CENTROIDS_READ,
    )


def draft_model_config(target: Gemma4TextConfig) -> Gemma4TextConfig:
    """An independent draft model: the target's tokens and architecture, half as wide, with K/V of its own."""
    return Gemma4TextConfig(
        vocab_size=target.vocab_size,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=3,
        layer_types=[SLIDING, SLIDING, FULL],
        num_kv_shared_layers=0,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        global_head_dim=32,
        sliding_window=target.sliding_window,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=0,
        final_logit_softcapping=target.final_logit_softcapping,
        max_position_embeddings=target.max_position_embeddings,
        **SPECIAL,
    )


def mtp_heads_config(target: Gemma4TextConfig) -> MtpHeadsConfig:
    """One native MTP head of full attention."""
    return MtpHeadsConfig(
        vocab_size=target.vocab_size,
        hidden_size=target.hidden_size,
        intermediate_size=320,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        rms_norm_eps=target.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        max_position_embeddings=target.max_position_embeddings,
    )


def dflash_config(
    target: Gemma4TextConfig, layers: int = 3, taps: Sequence[int] = (1, 3, 4)
) -> MuseGlimmerAssistantConfig:
    """A DFlash drafter of blocks of 16, full attention, with the output of the target's layers `taps` as context."""
    return MuseGlimmerAssistantConfig(
        hidden_size=target.hidden_size,
        intermediate_size=224,
        num_hidden_layers=layers,
        layer_types=[FULL] * layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        max_position_embeddings=target.max_position_embeddings,
        block_size=16,
        mask_token_id=MASK_TOKEN,
        target_layer_ids=list(taps),
        **SPECIAL,
    )


@torch.no_grad()
def random_pair(
    target: Gemma4TextConfig, drafter: Gemma4AssistantConfig, seed: int
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Random weights of the size that keeps activations near 1 and attention soft.

    A random net with sharp attention is chaotic: an error of 1e-7 grows until parity means nothing.
    """
    patch_transformers()
    torch.manual_seed(seed)
    target_model, drafter_model = (AutoModelForCausalLM.from_config(config).eval() for config in (target, drafter))
    for model in (target_model, drafter_model):
        for name, weight in model.named_parameters():
            mean, std = weight_scale(name, weight.shape)
            weight.normal_(mean, std) if std else weight.fill_(mean)
    for layer in target_model.model.layers:
        layer.layer_scalar.fill_(0.8)
    if drafter.use_ordered_embeddings:
        drafter_model.masked_embedding.token_ordering.copy_(torch.randperm(target.vocab_size))
    return target_model, drafter_model


def weight_scale(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """Mean and standard deviation of a random weight by its name and shape in a checkpoint."""
    if name.endswith("layer_scalar"):
        return 0.8, 0.0
    if name.endswith("q_norm.weight"):
        return shape[0] ** -0.5, 0.0
    if len(shape) == 1:
        return 1.0, 0.1
    # A router's input is scaled by hidden^-0.5: its choice would hang on rounding errors.
    return 0.0, 1.0 if name.endswith("router.proj.weight") else shape[-1] ** -0.5


def soften_attention(model: nn.Module) -> None:
    """Gemma 4 does not scale its scores, so an untrained q_norm must start at head_dim^-0.5."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("q_norm.weight"):
                weight.fill_(weight.shape[0] ** -0.5)
