"""Llama's kind of target, written for export: SmolLM2, and Qwen3, which norms queries and keys of each head besides.

The same arithmetic as transformers' `modeling_llama.py` and `modeling_qwen3.py`, with static shapes and K/V as
explicit tensors. Batch is 1 throughout. Letters in shapes are those of `decoder.py` and `attention.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PretrainedConfig

from .decoder import Geometry, Layer, Target, Trunk, check_choices
from .llama_layer import DecoderLayer, LayerSize

MODEL_TYPES = ("llama", "qwen3")


def geometry_of(config: PretrainedConfig) -> Geometry:
    """Of a `LlamaConfig` or `Qwen3Config`. Raises PocketdraftError for what the graphs do not cover."""
    check_choices(config, _choices(config))
    layers = (
        Layer(
            kind="full",
            owns_kv=True,
            reads=index,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            intermediate=config.intermediate_size,
        )
        for index in range(config.num_hidden_layers)
    )
    return Geometry(
        vocab=config.vocab_size,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        layers=tuple(layers),
        eps=config.rms_norm_eps,
        tied_head=config.tie_word_embeddings,
        rope={"full": (config.rope_parameters["rope_theta"], 1.0)},
    )


def _choices(config: PretrainedConfig) -> Iterator[tuple[str, object, object]]:
    """See `check_choices`."""
    yield "hidden_act", config.hidden_act, "silu"
    yield "attention_bias", config.attention_bias, False
    yield "mlp_bias", getattr(config, "mlp_bias", False), False
    yield "use_sliding_window", getattr(config, "use_sliding_window", False), False
    yield "rope_type", config.rope_parameters.get("rope_type", "default"), "default"


def make_target(config: PretrainedConfig) -> Target:
    """Without weights."""
    geometry = geometry_of(config)
    size = LayerSize.of(config, qk_norm=config.model_type == "qwen3")
    return Target(Trunk(geometry, (DecoderLayer(size, index) for index in range(config.num_hidden_layers))))


def own_name(name: str, config: PretrainedConfig) -> str | None:
    """Old checkpoints hold RoPE's frequencies, which follow from theta."""
    return None if name.endswith(".rotary_emb.inv_freq") else name.removeprefix("model.")
