from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Gemma4ForCausalLM, LlamaConfig, LlamaForCausalLM

from pocketdraft.export.backends.litert import quantize_steps
from pocketdraft.export.calibrate import Calibration, calibrate, through_target
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.kv_int8 import steps_in
from pocketdraft.export.plan import Recipes
from pocketdraft.export.sensitivity import Reader
from pocketdraft.export.step import all_weights
from pocketdraft.export.tiny import PROMPTS_FILE, TARGET_DIR
from pocketdraft.quantize.recipe import Recipe, Rule, load
from pocketdraft.quantize.weights import error_of, on_grid
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.text import Tokenizer

WIDTH = 48
# int4 for all but the tables, which have no inputs to be calibrated on.
RULES = (
    Rule(weights="*embedder.table", dtype="int8"),
    Rule(weights="*per_layer_projection", dtype="int4"),
    Rule(weights="*", dtype="int4", block=32),
)
RECIPE = Recipe(name="int4", rule=RULES)
RECIPES = Recipes(RECIPE, RECIPE, RECIPE)


def texts() -> list[list[int]]:
    files = Checkpoint.open(TARGET_DIR)
    tokenizer = Tokenizer(files.tokenizer_file, files.tokens().bos)
    return [tokenizer.encode(prompt.text) for prompt in read_prompts(PROMPTS_FILE)]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("calibrated") / "target"
    calibrate(Checkpoint.open(TARGET_DIR), RECIPES, texts()[::2], out)
    return out


def weights_of(target: Path) -> dict[str, np.ndarray]:
    return {
        name: module.weight.numpy() for name, module in all_weights(Reader.steps_of(Checkpoint.open(target))).items()
    }


def log_probabilities(target: Path, recipe: Recipe) -> torch.Tensor:
    steps = Reader.steps_of(Checkpoint.open(target))
    quantize_steps(steps, Recipes(recipe, recipe, recipe))
    return Reader(steps).log_probabilities([text[:WIDTH] for text in texts()[1::8]])


def test_calibrated_weights_lie_on_their_rules_grid_and_the_others_are_the_same(calibrated):
    before, after = weights_of(TARGET_DIR), weights_of(calibrated)
    assert before.keys() == after.keys()
    for name, weight in after.items():
        rule = RECIPE.rule_for(name)
        if rule.bits == 4:
            assert on_grid(weight, rule) == 1, name
            assert error_of(name, weight, rule).sqnr_db > 50, name
            assert not np.array_equal(weight, before[name]), name
        else:
            np.testing.assert_array_equal(weight, before[name], err_msg=name)


def test_the_calibrated_target_is_nearer_to_the_float_one_on_texts_it_has_not_seen(calibrated):
    wanted = log_probabilities(TARGET_DIR, load("f32"))

    def kl(now: torch.Tensor) -> float:
        return float((wanted.exp() * (wanted - now)).sum(-1).mean())

    rounded = kl(log_probabilities(TARGET_DIR, RECIPE))
    assert kl(log_probabilities(calibrated, RECIPE)) < 0.85 * rounded


def test_a_calibrated_head_is_a_tensor_of_its_own_and_transformers_loads_it(calibrated):
    weights = weights_of(calibrated)
    assert not np.array_equal(weights["target.lm_head"], weights["embedder.table"])
    theirs = Gemma4ForCausalLM.from_pretrained(calibrated, dtype=torch.float32)
    np.testing.assert_array_equal(theirs.lm_head.weight.detach().numpy(), weights["target.lm_head"])
    np.testing.assert_array_equal(theirs.model.embed_tokens.weight.detach().numpy(), weights["embedder.table"])


def test_too_little_text_is_refused_with_both_numbers(tmp_path):
    with pytest.raises(PocketdraftError, match=r"have 12 tokens, 1024 are the least"):
        calibrate(Checkpoint.open(TARGET_DIR), RECIPES, [list(range(3, 15))], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_blocks_that_do_not_divide_a_row_are_refused_before_any_work(tmp_path):
    recipe = Recipe(name="wide", rule=(Rule(weights="*.q_proj", dtype="int4", block=256),))
    with pytest.raises(
        PocketdraftError, match=r"blocks of 256 in target\.layers\.0\.self_attn\.q_proj, whose rows have 128"
    ):
        calibrate(Checkpoint.open(TARGET_DIR), Recipes(*[recipe] * 3), texts()[::2], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_was_calibrated_on_is_recorded(calibrated):
    record = json.loads((calibrated / "calibration.json").read_text())
    assert record["tokens"] == sum(map(len, texts()[::2]))
    assert Recipe.model_validate(record["recipe"]["target"]) == RECIPE


def test_texts_run_layer_by_layer_as_the_graphs_run_them(tmp_path):
    """With nothing quantized: the hidden states are transformers' own."""
    text, float32 = texts()[0][:80], load("f32")
    with torch.no_grad():
        work = Calibration(Checkpoint.open(TARGET_DIR), Recipes(float32, float32, float32), tmp_path)
        (passed,) = through_target(work, [text], lambda *_: None)
        theirs = Gemma4ForCausalLM.from_pretrained(TARGET_DIR, dtype=torch.float32).model(torch.tensor([text]))
    for stream in (passed.wanted, passed.now):
        torch.testing.assert_close(stream.x, theirs.last_hidden_state, atol=2e-4, rtol=0)


def test_how_far_keys_and_values_reach_is_that_of_the_texts(calibrated):
    """As transformers keeps them, of the float model; rounding the weights moves it a little."""
    theirs = Gemma4ForCausalLM.from_pretrained(TARGET_DIR, dtype=torch.float32)
    reach: dict[int, list[float]] = {}
    for text in texts()[::2]:
        with torch.no_grad():
            kept = theirs(torch.tensor([text]), use_cache=True).past_key_values
        for layer, one in enumerate(layer for layer in kept.layers if layer.keys is not None):
            largest = [float(one.keys.abs().max()), float(one.values.abs().max())]
            reach[layer] = [max(pair) for pair in zip(reach.get(layer, largest), largest, strict=True)]
    found = steps_in(Checkpoint.open(calibrated).tensors)
    assert found.keys() == reach.keys()
    for layer, steps in found.items():
        assert [127 * step for step in steps] == pytest.approx(reach[layer], rel=0.15)


def test_a_llama_s_texts_run_layer_by_layer_too(tmp_path):
    """Its embeddings are not scaled, and nothing is computed before its layers."""
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
            tie_word_embeddings=True,
        )
    ).eval()
    theirs.save_pretrained(tmp_path / "target")
    text, float32 = list(range(80)), load("f32")
    with torch.no_grad():
        work = Calibration(Checkpoint.open(tmp_path / "target"), Recipes(float32, float32, float32), tmp_path / "out")
        (passed,) = through_target(work, [text], lambda *_: None)
        wanted = theirs.model(torch.tensor([text])).last_hidden_state
    for stream in (passed.wanted, passed.now):
        torch.testing.assert_close(stream.x, wanted, atol=2e-4, rtol=0)
