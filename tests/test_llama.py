"""Llama's kind of target against transformers' own modules: prefill, decode and verify, and what must not go wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, LlamaConfig, PretrainedConfig, Qwen3Config

from pocketdraft.export.backends.eager import EagerEngine
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.families import family_of, load_target
from pocketdraft.export.kv_layout import KVLayout
from pocketdraft.export.models.decoder import Target
from pocketdraft.export.models.llama import geometry_of, make_target
from pocketdraft.export.step import Plain
from pocketdraft.export.steps.target import embedder_steps, target_steps
from pocketdraft.export.stored import load
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.proposal import Proposal
from pocketdraft.runtime.tree import inputs

CONTEXT, LIMIT = 32, 1e-4
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.25,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "grouped queries, tied head": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "one KV head a query head, own head": LlamaConfig(**SIZES, num_key_value_heads=4, tie_word_embeddings=False),
    "another theta, wide heads": LlamaConfig(
        **SIZES, num_key_value_heads=1, head_dim=24, rope_parameters={"rope_type": "default", "rope_theta": 1e5}
    ),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=32, tie_word_embeddings=True),
}
GROUPED = CONFIGS["grouped queries, tied head"]


class Bundle:
    """The little that EagerEngine asks of a manifest."""

    def __init__(self, steps) -> None:
        self.graphs = tuple(step.spec for step in steps)


def both(config: PretrainedConfig) -> tuple[torch.nn.Module, Target]:
    """Theirs and ours with the same random weights, norms included."""
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    for name, parameter in theirs.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    ours = make_target(config)
    weights = {name.removeprefix("model."): tensor for name, tensor in theirs.state_dict().items()}
    own = ("embed_tokens.", "lm_head.")
    ours.load_state_dict({n if n.startswith(own) else f"trunk.{n}": tensor for n, tensor in weights.items()})
    return theirs, ours.eval()


def largest_error(config: PretrainedConfig, spoil: Callable[[Target], None] = lambda _: None) -> float:
    """Of logits and hidden states: 7 tokens prefilled, 1 decoded, 2 drafts refused and 5 more tokens verified."""
    theirs, ours = both(config)
    spoil(ours)
    layout = KVLayout.of(ours.geometry, CONTEXT, 7)
    steps = [*target_steps(ours, layout, (7,), (5, 3), Plain()), *embedder_steps(ours)]
    engine = EagerEngine(Bundle(steps), steps)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 13).tolist()
    with torch.no_grad():
        wanted = theirs(torch.tensor([tokens]), output_hidden_states=True)
    cache = engine.new_cache()

    def call(graph: str, start: int, fed: list[int]) -> dict[str, np.ndarray]:
        rows = [engine.run("embedder", {"token_ids": np.array([[token]], np.int32)})["embeddings"] for token in fed]
        chain = Proposal.chain(fed[1:])
        feed = {"embeddings": np.concatenate(rows, 1)} | inputs(chain, start, len(fed), CONTEXT)
        return engine.run(graph, feed, cache)

    call("prefill_7", 0, tokens[:7])
    found = [call("decode", 7, tokens[7:8])]
    call("verify_3", 8, [tokens[8], 5, 6])
    found.append(call("verify", 8, tokens[8:]))
    errors = [
        np.abs(np.concatenate([one[name] for one in found], 1)[0] - whole[0, 7:].numpy()).max()
        for name, whole in (("logits", wanted.logits), ("activations", wanted.hidden_states[-1]))
    ]
    return float(max(errors))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_graph_agrees_with_transformers(config):
    assert largest_error(config) <= LIMIT


def attentions(target: Target) -> list:
    return [layer.self_attn for layer in target.trunk.layers]


def test_trap_scores_not_scaled():
    def spoil(target: Target) -> None:
        for attention in attentions(target):
            attention.scale = 1.0

    assert largest_error(GROUPED, spoil) > 100 * LIMIT


def test_trap_another_theta():
    def spoil(target: Target) -> None:
        target.trunk.geometry = dataclasses.replace(target.geometry, rope={"full": (2e4, 1.0)})

    assert largest_error(GROUPED, spoil) > 100 * LIMIT


def test_trap_embeddings_scaled_as_gemmas():
    def spoil(target: Target) -> None:
        target.geometry = dataclasses.replace(target.geometry, embedding_scale=8.0)

    assert largest_error(GROUPED, spoil) > 100 * LIMIT


@pytest.mark.parametrize("forgotten", ["q_norm", "k_norm"])
def test_trap_norm_of_each_head_forgotten(forgotten):
    def spoil(target: Target) -> None:
        for attention in attentions(target):
            setattr(attention, forgotten, torch.nn.Identity())

    assert largest_error(CONFIGS["qwen3"], spoil) > 100 * LIMIT


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("attention_bias", True, "attention_bias True"),
        ("mlp_bias", True, "mlp_bias True"),
        ("hidden_act", "gelu", "hidden_act gelu"),
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}, "rope_type llama3"),
    ],
)
def test_what_the_graphs_do_not_have_is_refused_by_its_name(field, value, said):
    config = LlamaConfig(**SIZES)
    setattr(config, field, value)
    with pytest.raises(PocketdraftError, match=f"The checkpoint has {said}, the graphs of a llama have"):
        geometry_of(config)


def test_qwen3_with_sliding_layers_is_refused():
    config = Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(PocketdraftError, match="use_sliding_window True"):
        geometry_of(config)


def test_only_targets_are_found_as_families():
    assert family_of(GROUPED).MODEL_TYPES == ("llama", "qwen3")
    with pytest.raises(PocketdraftError, match="A bert was given as the target, pocketdraft exports gemma4"):
        family_of(BertConfig())


def saved(config: PretrainedConfig, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Checkpoint:
    """A checkpoint of random weights, changed."""
    both(config)[0].save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    return Checkpoint.open(folder)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_saved_checkpoint_loads_with_the_weights_it_has(config, tmp_path):
    """Frequencies of RoPE, which old checkpoints hold, are left alone."""
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    target, places = load_target(saved(config, tmp_path, lambda weights: weights.update(frequencies)))
    load(places, target)
    wanted, found = both(config)[1].state_dict(), target.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (target.lm_head.weight is target.embed_tokens.weight) == config.tie_word_embeddings


def test_a_head_of_its_own_must_be_there(tmp_path):
    own_head = CONFIGS["one KV head a query head, own head"]
    checkpoint = saved(own_head, tmp_path, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(PocketdraftError, match=r"lacks the weight lm_head\.weight"):
        load_target(checkpoint)


def test_a_bias_that_the_configuration_does_not_tell_is_named(tmp_path):
    bias = {"model.layers.1.self_attn.q_proj.bias": torch.zeros(64)}
    checkpoint = saved(GROUPED, tmp_path, lambda weights: weights.update(bias))
    with pytest.raises(PocketdraftError, match=r"has a weight model\.layers\.1\.self_attn\.q_proj\.bias that llama"):
        load_target(checkpoint)
