"""A Llama as the target of a bundle: the ladder, the loop, its drafters, and pairs that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import FEW_WIDTHS, WIDTHS
from kept import kept
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3Config

from pocketdraft.export.checkpoint import Checkpoint, read_config
from pocketdraft.export.estimate import blank_models
from pocketdraft.export.heads import head_config, new_head, own_head, save_head
from pocketdraft.export.models.mtp_config import MtpHeadsConfig
from pocketdraft.export.pipeline import build, load_models
from pocketdraft.export.plan import Plan, Recipes
from pocketdraft.export.reference import TransformersEngine
from pocketdraft.export.rungs import eager_pair, rungs
from pocketdraft.export.tiny import DRAFTER_DIR, TARGET_DIR
from pocketdraft.quantize.recipe import load
from pocketdraft.runtime.context import Context
from pocketdraft.runtime.engine import Engine, open_engine
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.ladder import climb, compare, tokens_needed
from pocketdraft.runtime.manifest import Backend
from pocketdraft.runtime.proposal import Proposal
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.validate import validate

SIZES = {"intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.1}
CONFIGS: dict[str, Callable[..., PretrainedConfig]] = {
    "llama": lambda hidden=128, vocab=2048, **more: LlamaConfig(
        hidden_size=hidden, vocab_size=vocab, num_key_value_heads=2, tie_word_embeddings=True, **SIZES, **more
    ),
    "qwen3": lambda hidden=128, vocab=2048, **more: Qwen3Config(
        hidden_size=hidden, vocab_size=vocab, num_key_value_heads=1, head_dim=32, **SIZES, **more
    ),
}
PROMPT = [5, 6, 7, 8, 5, 6, 7]


@pytest.fixture(scope="session")
def make_target(tmp_path_factory) -> Callable[..., Path]:
    """A checkpoint of random weights with the embedded pair's tokenizer."""

    def make(kind: str = "llama", **sizes: object) -> Path:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(kind)
        AutoModelForCausalLM.from_config(CONFIGS[kind](**sizes)).save_pretrained(folder)
        (folder / "tokenizer.json").write_bytes((TARGET_DIR / "tokenizer.json").read_bytes())
        return folder

    return make


def save_heads(config: MtpHeadsConfig, count: int, folder: Path) -> Path:
    """Random layers that each have their own projection and norms."""
    config.num_mtp_layers, weights = count, {}
    for index in range(count):
        torch.manual_seed(index)
        weights |= {f"mtp.layers.{index}.{name}": weight for name, weight in new_head(config).state_dict().items()}
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors")
    return folder


def drafted(engine: Engine) -> list[list[int]]:
    """By round."""
    session, rounds = open_session(engine, "mtp_heads", 4), []
    propose = session.drafter.propose

    def noted(context: Context, count: int) -> Proposal:
        rounds.append(list((proposal := propose(context, count)).tokens))
        return proposal

    session.drafter.propose = noted  # type: ignore[method-assign]
    list(session.generate(PROMPT, 24))
    return rounds


def generate(engine: Engine, drafter: str) -> list[int]:
    return [token for emitted in open_session(engine, drafter, 4).generate(PROMPT, 40) for token in emitted.tokens]


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_ladder_stands(make_target, kind):
    checkpoint = Checkpoint.open(make_target(kind))
    ours = eager_pair(checkpoint, context=96)
    tokens = np.random.default_rng(0).integers(0, 2048, tokens_needed(ours.manifest)).tolist()
    wanted, feed = climb(ours.manifest, TransformersEngine(ours.manifest, checkpoint, None), tokens, None)
    found, _ = climb(ours.manifest, ours, tokens, feed)
    differences = compare(wanted, found, dict.fromkeys(found, 1e-3))
    assert {difference.graph for difference in differences} >= {"embedder", "prefill_64", "decode", "verify"}
    assert all(difference.passed for difference in differences)


def test_prompt_lookup_gives_plain_decoding_s_tokens(make_target):
    engine = eager_pair(Checkpoint.open(make_target()), context=96)
    assert generate(engine, "prompt_lookup") == generate(engine, "none")


def test_a_smaller_llama_drafts_for_a_larger_one(make_target):
    target, smaller = Checkpoint.open(make_target()), Checkpoint.open(make_target(hidden=64))
    engine = eager_pair(target, smaller, context=96)
    assert generate(engine, "draft_model") == generate(engine, "none")


def test_a_llama_that_drafts_for_itself_is_accepted_whole(make_target):
    target = Checkpoint.open(make_target())
    session = open_session(eager_pair(target, target, context=96), "draft_model", 4)
    list(session.generate(PROMPT, 40))
    assert session.stats.accepted_per_round == 4.0


def refusal(target: Path, *drafters: Path) -> str:
    with pytest.raises(PocketdraftError) as caught:
        eager_pair(Checkpoint.open(target), *map(Checkpoint.open, drafters), context=96)
    return str(caught.value)


def test_gemma_s_drafter_of_another_size(make_target):
    assert "has backbone hidden size 128, the target" in refusal(make_target(hidden=64), DRAFTER_DIR)


def test_gemma_s_drafter_of_the_same_size_has_no_sliding_layer_to_read(make_target):
    said = refusal(make_target(), DRAFTER_DIR)
    assert "layers to read of the kinds ['full', 'sliding'], the target" in said
    assert "has ['full']; give the drafter that was trained for this target" in said


def test_gemma_s_drafter_is_refused_before_the_memory_that_the_pair_takes_is_told(make_target):
    """`export` and `plan` ask for that first, of the configurations alone."""
    target, drafter = make_target(hidden=64), DRAFTER_DIR
    with pytest.raises(PocketdraftError, match="reads K/V of a sliding layer, the target has none"):
        blank_models(read_config(target), read_config(drafter))


def test_a_draft_model_of_another_vocabulary(make_target):
    assert "has vocabulary size 2048, the target" in refusal(make_target(vocab=4096), make_target(hidden=64))


def test_rope_that_is_scaled_is_refused_by_its_type(make_target):
    folder = make_target()
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 1024
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5, "rope_scaling": scaling}))
    with pytest.raises(PocketdraftError, match="has rope_type llama3, the graphs of a llama have default"):
        load_models(Checkpoint.open(folder))


SLOW = [pytest.param(name, marks=[] if name == "onnx" else pytest.mark.slow) for name in get_args(Backend)]


@pytest.mark.parametrize("backend", SLOW)
def test_a_bundle_without_any_drafter_is_valid(make_target, backend):
    target, recipe = make_target(), load("w8")

    def write(out: Path) -> None:
        build([Plan(target, (), out, Recipes(recipe, recipe, recipe), backend, **WIDTHS)])

    bundle = kept(f"llama-w8-{backend}", write)
    engine = open_engine(bundle, 1)
    found = validate(bundle, engine, ["a" * 20], 24, rungs(engine.manifest, target, ()), lambda what: None)
    assert list(found.ladder) == ["transformers -> step", "step -> quantized step", "quantized step -> graph"]
    assert found.passed, found.to_json()
    assert {check.name: check.outcome for check in found.checks}["prompt_lookup vs plain"] == "pass"
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("backend", get_args(Backend))
def test_a_native_head_with_a_head_of_its_own_is_valid(make_target, backend, tmp_path):
    """It drafts some of the tokens only: the target's head has no graph then."""
    folder, recipe = make_target(), load("w8")
    target, config = AutoModelForCausalLM.from_pretrained(folder), head_config(LlamaConfig.from_pretrained(folder))
    torch.manual_seed(1)
    save_head(new_head(config), config, tmp_path / "head", own_head(target, torch.arange(0, 2048, 4)))
    plan = Plan(folder, (tmp_path / "head",), tmp_path / "out", Recipes(recipe, recipe, recipe), backend, **FEW_WIDTHS)
    (manifest,) = build([plan])
    assert [(graph.name, graph.part) for graph in manifest.graphs_of("head")] == [("mtp_heads_head", "mtp_heads")]
    engine = open_engine(tmp_path / "out", 1)
    found = validate(
        tmp_path / "out", engine, ["a" * 20], 24, rungs(manifest, folder, plan.drafters), lambda what: None
    )
    assert found.passed, found.to_json()
    assert {check.name: check.outcome for check in found.checks}["mtp_heads vs plain"] == "pass"
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("backend", get_args(Backend))
def test_several_native_heads_are_valid_and_draft_what_they_do_in_torch(make_target, backend, tmp_path):
    """The graphs of each head, over K/V of its own."""
    folder, recipe = make_target(), load("f32")
    heads = save_heads(head_config(LlamaConfig.from_pretrained(folder)), 3, tmp_path / "heads")
    (manifest,) = build([Plan(folder, (heads,), tmp_path / "out", Recipes(*[recipe] * 3), backend, **FEW_WIDTHS)])
    engine = open_engine(tmp_path / "out", 1)
    found = validate(tmp_path / "out", engine, ["a" * 20], 24, rungs(manifest, folder, (heads,)), lambda what: None)
    assert found.passed, found.to_json()
    outcomes = {check.name: check.outcome for check in found.checks}
    assert outcomes["mtp_heads vs plain"] == "pass"
    assert "parity ladder" not in outcomes  # every graph was run
    errors = {row.graph: row.max_error for row in found.ladder["step -> graph"] if row.graph.startswith("mtp_heads")}
    assert errors.keys() == {f"mtp_heads{head}_{width}" for head in ("", "_1", "_2") for width in (1, 5, 24)}
    assert max(errors.values()) < 1e-3
    eager = eager_pair(Checkpoint.open(folder), Checkpoint.open(heads), context=96)
    assert drafted(engine) == drafted(eager)
    engine.close()
