"""Bits shared out by measurement."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import Gemma4ForCausalLM

from pocketdraft.export import sensitivity
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.sensitivity import Reader, cost, kl, mixed
from pocketdraft.export.step import all_weights
from pocketdraft.export.tiny import PROMPTS_FILE, TARGET_DIR
from pocketdraft.quantize.recipe import Rule, load
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.text import Tokenizer


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    tokenizer = Tokenizer(TARGET_DIR / "tokenizer.json", 2)
    return [tokenizer.encode(prompt.text)[:80] for prompt in read_prompts(PROMPTS_FILE, per_domain=2)]


@pytest.fixture(scope="module")
def steps():
    return Reader.steps_of(Checkpoint.open(TARGET_DIR))


def test_texts_are_read_as_transformers_reads_them(steps, texts):
    theirs = Gemma4ForCausalLM.from_pretrained(TARGET_DIR, dtype=torch.float32)
    with torch.no_grad():
        wanted = theirs(torch.tensor([texts[0]])).logits[0].log_softmax(-1)
    torch.testing.assert_close(Reader(steps).log_probabilities(texts[:1]), wanted, atol=1e-4, rtol=0)


def test_a_weight_s_cost_is_its_own_and_it_comes_back_as_it_was(steps, texts):
    reader, weights = Reader(steps), all_weights(steps)
    wanted = reader.log_probabilities(texts)
    name = "target.layers.0.self_attn.v_proj"
    before = weights[name].weight
    int4, int8 = (cost(reader, {name: weights[name]}, rule_of(dtype), texts, wanted) for dtype in ("int4", "int8"))
    assert 0 < 20 * int8 < int4
    assert weights[name].weight is before
    assert kl(wanted, reader.log_probabilities(texts)) == 0


def rule_of(dtype: str) -> Rule:
    return Rule(weights="*", dtype=dtype)


def test_a_mixed_recipe_keeps_its_budget_and_gives_int8_where_int4_hurts(steps, texts):
    weights = all_weights(steps)
    shapes = {name: tuple(module.weight.shape) for name, module in weights.items()}
    recipe = mixed(Checkpoint.open(TARGET_DIR), texts, 5.5, load("w8"))
    size = sum(recipe.rule_for(name).size_bytes(*shape) for name, shape in shapes.items())
    assert 5.2 < 8 * size / sum(map(math.prod, shapes.values())) <= 5.5
    kinds = {name: recipe.rule_for(name).dtype for name in shapes}
    assert {kinds[name] for name in shapes if name.endswith("v_proj")} == {"int8"}
    assert "int4" in {kinds[name] for name in shapes if "mlp" in name}
    assert recipe.rule_for("drafter.lm_head").dtype == "int8"


def test_a_recipe_written_down_is_read_again(tmp_path):
    recipe = load("w4")
    (tmp_path / "own.toml").write_text(recipe.to_toml())
    assert load(str(tmp_path / "own.toml")).rule == recipe.rule


def test_too_few_bits_are_refused_with_both_sizes_before_anything_is_measured(texts, monkeypatch):
    monkeypatch.setattr(sensitivity, "cost", None)
    with pytest.raises(PocketdraftError, match=r"budget is 0\.73 MB, the smallest .* takes 1\.03 MB; give more bits"):
        mixed(Checkpoint.open(TARGET_DIR), texts, 3, load("w8"))


def test_too_little_text_is_refused_with_both_numbers():
    with pytest.raises(PocketdraftError, match="have 4 tokens, 256 are the least"):
        mixed(Checkpoint.open(TARGET_DIR), [[2, 5, 6, 7]], 5, load("w8"))
