"""Llama's kind of target, written for export: SmolLM2, and Qwen3, which norms queries and keys of each head besides.

The same arithmetic as transformers' `modeling_llama.py` and `modeling_qwen3.py`, with static shapes and K/V as
explicit tensors. Batch is 1 throughout. Letters in shapes are those of `decoder.py` and `attention.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from transformers import PretrainedConfig

from pocketdraft.runtime.errors import PocketdraftError

from .attention import KVAccess, attend_grouped, rotate, split_heads
from .decoder import Geometry, Layer, Target, Trunk
from .layers import GatedMLP, RMSNorm, SiLU, linear

MODEL_TYPES = ("llama", "qwen3")


def geometry_of(config: PretrainedConfig) -> Geometry:
    """Of a `LlamaConfig` or `Qwen3Config`. Raises PocketdraftError for what the graphs do not cover."""
    for what, value, covered in _choices(config):
        if value != covered:
            raise PocketdraftError(
                f"The checkpoint has {what} {value}, the graphs of a {config.model_type} have {covered}; "
                "give a checkpoint of that kind."
            )
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
    """What a configuration may choose, its choice, and the only one that the graphs have."""
    yield "hidden_act", config.hidden_act, "silu"
    yield "attention_bias", config.attention_bias, False
    yield "mlp_bias", getattr(config, "mlp_bias", False), False
    yield "use_sliding_window", getattr(config, "use_sliding_window", False), False
    yield "rope_type", config.rope_parameters.get("rope_type", "default"), "default"


class Attention(nn.Module):
    def __init__(self, geometry: Geometry, index: int, qk_norm: bool) -> None:
        super().__init__()
        layer = geometry.layers[index]
        size, eps = layer.head_dim, geometry.eps
        self.size, self.index, self.scale = size, index, size**-0.5
        self.q_proj = linear(geometry.hidden, geometry.heads * size)
        self.k_proj = linear(geometry.hidden, layer.kv_heads * size)
        self.v_proj = linear(geometry.hidden, layer.kv_heads * size)
        self.o_proj = linear(geometry.heads * size, geometry.hidden)
        self.q_norm = RMSNorm(size, eps) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(size, eps) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, kv: KVAccess) -> Tensor:
        query, key = self.q_norm(self._split(self.q_proj(x))), self.k_norm(self._split(self.k_proj(x)))
        value = self._split(self.v_proj(x)).transpose(1, 2)
        kv.write(self.index, rotate(key.transpose(1, 2), *rope), value)
        query = rotate(query.transpose(1, 2), *rope) * self.scale
        return self.o_proj(attend_grouped(query, mask, kv, self.index))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return split_heads(x, self.size)


class DecoderLayer(nn.Module):
    def __init__(self, geometry: Geometry, index: int, qk_norm: bool) -> None:
        super().__init__()
        self.self_attn = Attention(geometry, index, qk_norm)
        self.mlp = GatedMLP(geometry.hidden, geometry.layers[index].intermediate, SiLU())
        self.input_layernorm = RMSNorm(geometry.hidden, geometry.eps)
        self.post_attention_layernorm = RMSNorm(geometry.hidden, geometry.eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, kv: KVAccess) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, kv)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


def make_target(config: PretrainedConfig) -> Target:
    """Without weights."""
    geometry, qk_norm = geometry_of(config), config.model_type == "qwen3"
    return Target(Trunk(geometry, (DecoderLayer(geometry, index, qk_norm) for index in range(len(geometry.layers)))))


def own_name(name: str, config: PretrainedConfig) -> str | None:
    """Old checkpoints hold RoPE's frequencies, which follow from theta."""
    return None if name.endswith(".rotary_emb.inv_freq") else name.removeprefix("model.")
