from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketdraft.quantize.recipe import Recipe, Rule, load, names
from pocketdraft.quantize.weights import error_of, round_trip
from pocketdraft.runtime.errors import PocketdraftError

WEIGHT = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)


def test_the_first_rule_that_matches_decides():
    rules = (Rule(weights="target.lm_head", dtype="int8"), Rule(weights="target.*", dtype="int4"))
    recipe = Recipe(name="r", rule=rules)
    assert recipe.rule_for("target.lm_head").dtype == "int8"
    assert recipe.rule_for("target.layers.0.mlp.up_proj").dtype == "int4"
    assert recipe.rule_for("drafter.head").dtype == "float32"


@pytest.mark.parametrize("name", names())
def test_built_in_recipes_load(name):
    assert load(name).name == name


def test_w4_keeps_int8_where_int4_hurts():
    recipe = load("w4")
    assert (
        recipe.rule_for("target.layers.3.mlp.down_proj").bits
        == recipe.rule_for("drafter.layers.0.self_attn.q_proj").bits
        == 4
    )
    for weight in (
        "target.lm_head",
        "drafter.head.rows",
        "embedder.table",
        "target.layers.0.self_attn.v_proj",
        "target.per_layer_model_projection",
    ):
        assert recipe.rule_for(weight).bits == 8


def test_an_unknown_recipe_gets_the_near_match():
    with pytest.raises(PocketdraftError, match=r"no recipe 'mixd'; did you mean 'mixed'"):
        load("mixd")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rule = [", "not valid TOML"),
        ('[[rule]]\nweights = "*"\ndtype = "int3"', "rule.0.dtype"),
        ('[[rule]]\nweights = "*"\ndtype = "int8"\ncolour = 1', "rule.0.colour"),
        ("", "rule"),
    ],
)
def test_a_wrong_recipe_file_names_the_place(tmp_path, text, says):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(PocketdraftError, match=says):
        load(str(path))


@given(st.sampled_from(["int8", "int4"]), st.sampled_from([0, 32]), st.integers(0, 2**32 - 1))
def test_rounding_is_within_half_a_step_of_its_block(dtype, block, seed):
    weight = np.random.default_rng(seed).standard_normal((4, 64)).astype(np.float32)
    rule = Rule(weights="*", dtype=dtype, block=block, scale="absmax")
    step = np.abs(weight.reshape(4, -1, block or 64)).max(-1) / (2 ** (rule.bits - 1) - 1)
    error = np.abs(round_trip(weight, rule) - weight).reshape(4, -1, block or 64).max(-1)
    # A block's scale in bfloat16 is off by up to 1/512, which the largest level multiplies.
    assert (error <= step * (0.5001 if not block else 0.5001 + 127 / 512)).all()


def test_blocks_that_do_not_divide_a_row_are_refused_with_both_numbers():
    with pytest.raises(PocketdraftError, match=r"blocks of 128 in target\.x, whose rows have 64"):
        error_of("target.x", WEIGHT, Rule(weights="*", dtype="int4", block=128))


def test_float_is_left_alone():
    assert round_trip(WEIGHT, Rule(weights="*", dtype="float32")) is WEIGHT


def test_a_row_of_zeros_stays_zero():
    zeros = np.zeros((2, 32), np.float32)
    assert (round_trip(zeros, Rule(weights="*", dtype="int4", block=32)) == 0).all()


def test_int8_is_about_24_db_better_than_int4():
    int8, int4 = (error_of("w", WEIGHT, Rule(weights="*", dtype=d)).sqnr_db for d in ("int8", "int4"))
    assert 20 < int8 - int4 < 30
