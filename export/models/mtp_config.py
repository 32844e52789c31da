"""Configuration of a checkpoint that holds nothing but native MTP heads."""

from __future__ import annotations

from transformers import PretrainedConfig


class MtpHeadsConfig(PretrainedConfig):  # type: ignore[misc]
    """Of one MTP layer as Mellum's and Qwen3.5's checkpoints name it (`mtp.fc`, `mtp.layers.0`, `mtp.norm`), or of
    layers that each have their own projection and norms, as DeepSeek-V3's (`layers.N.eh_proj`, `enorm`, `hnorm`).

    transformers has no class for the layers without their target. Field names are those that its targets use:
    `hidden_size` and `vocab_size` are the target's, `sliding_window` None is full attention; layers N may be numbered
    from 0, or go on after the target's `num_hidden_layers`. With `draft_vocab_size` the checkpoint has a head of its
    own over so many tokens (`mtp.lm_head`, and by `mtp.token_rows` [V] each token's row, or one past the last), as
    EAGLE-3's have. `attn_output_gate` and `zero_centred_norms` are Qwen3.5's (see `llama_layer.LayerSize`).
    """

    model_type = "pocketdraft_mtp_heads"

    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 320
    num_attention_heads: int = 4
    num_key_value_heads: int = 1
    head_dim: int = 32
    hidden_act: str = "silu"
    attention_bias: bool = False
    use_qk_norm: bool = True
    attn_output_gate: bool = False
    zero_centred_norms: bool = False
    rms_norm_eps: float = 1e-6
    rope_parameters: dict | None = None
    sliding_window: int | None = None
    max_position_embeddings: int = 1024
    num_mtp_layers: int = 1
    num_hidden_layers: int = 0
    mtp_hidden_states_first: bool = False
    draft_vocab_size: int | None = None
