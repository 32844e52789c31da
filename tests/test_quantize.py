from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketdraft.quantize.recipe import Recipe, Rule, load, names
from pocketdraft.quantize.weights import error_of, quantize, restore, round_trip
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


RULES = [("int8", 0), ("int4", 0), ("int4", 32), ("int2", 0), ("int2", 32)]
WEIGHTS = st.tuples(
    st.sampled_from(RULES), st.sampled_from(["float32", "bfloat16", "float16"]), st.integers(0, 2**32 - 1)
)


def rule_of(kind: tuple[str, int], scale: str = "mse") -> Rule:
    return Rule(weights="*", dtype=kind[0], block=kind[1], scale=scale)


def stored_as(dtype: str, values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype).astype(np.float32)


def a_weight(seed: int, dtype: str = "float32") -> np.ndarray:
    return stored_as(dtype, np.random.default_rng(seed).standard_normal((6, 128)) * 0.02)


@given(st.sampled_from(["int8", "int4"]), st.sampled_from([0, 32]), st.integers(0, 2**32 - 1))
def test_rounding_without_clipping_is_within_half_a_step_of_its_block(dtype, block, seed):
    weight = np.random.default_rng(seed).standard_normal((4, 64)).astype(np.float32)
    rule = rule_of((dtype, block), "absmax")
    step = np.abs(weight.reshape(4, -1, block or 64)).max(-1) / (2 ** (rule.bits - 1) - 1)
    error = np.abs(round_trip(weight, rule) - weight).reshape(4, -1, block or 64).max(-1)
    # A block's scale in bfloat16 is off by up to 1/512, which the largest level multiplies.
    assert (error <= step * (0.5001 if not block else 0.5001 + 127 / 512)).all()


@given(WEIGHTS)
def test_clipping_never_costs_squared_error(case):
    kind, dtype, seed = case
    weight = a_weight(seed, dtype)
    errors = [np.square(round_trip(weight, rule_of(kind, scale)) - weight).sum(-1) for scale in ("mse", "absmax")]
    assert (errors[0] <= errors[1] * (1 + 1e-6)).all()


def test_clipping_gains_a_decibel_in_int4_rows_and_four_in_int2():
    weight = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)

    def gain(kind: tuple[str, int]) -> float:
        mse, absmax = (error_of("w", weight, rule_of(kind, scale)).sqnr_db for scale in ("mse", "absmax"))
        return mse - absmax

    assert gain(("int4", 0)) > 1
    assert gain(("int4", 32)) > 0.8
    assert gain(("int2", 0)) > 4


@given(WEIGHTS)
def test_rows_do_not_depend_on_each_other(case):
    kind, dtype, seed = case
    weight, rule = a_weight(seed, dtype), rule_of(kind)
    together = quantize(weight, rule)
    apart = [quantize(weight[i : i + 1], rule) for i in range(len(weight))]
    for whole, parts in zip(together, zip(*apart, strict=True), strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(parts))


@given(WEIGHTS)
def test_a_weight_that_lies_on_a_grid_keeps_its_levels(case):
    """As a checkpoint of quantization-aware training holds it: level * scale, rounded to the type it is stored in."""
    kind, dtype, seed = case
    rule, random = rule_of(kind), np.random.default_rng(seed)
    lowest, highest = rule.levels
    blocks = 128 // (rule.block or 128)
    levels = np.rint(random.standard_normal((6, blocks, 128 // blocks)) * highest / 2.5).clip(lowest, highest)
    levels[:, :, 0] = highest  # or the smallest level that all share would be a step as well
    levels[:, :, 1] = 1
    scales = stored_as("bfloat16", random.uniform(0.001, 0.02, (6, blocks)))
    weight = stored_as(dtype, (levels * scales[..., None]).reshape(6, 128))
    found, steps = quantize(weight, rule)
    np.testing.assert_array_equal(found, levels)
    np.testing.assert_allclose(steps, scales, rtol=2.0**-8)
    if rule.block:
        np.testing.assert_array_equal(steps, scales)
    np.testing.assert_allclose(restore(found, steps), weight, rtol=2.0**-8)


def test_the_lowest_level_of_an_int4_grid_is_kept():
    weight = np.tile(np.arange(-8, 8, dtype=np.float32), (2, 2)) * np.float32(0.0078125)
    levels, _ = quantize(weight, rule_of(("int4", 32)))
    assert levels.min() == -8
    np.testing.assert_array_equal(round_trip(weight, rule_of(("int4", 32))), weight)


def q4_0(seed: int) -> np.ndarray:
    """llama.cpp's grid, which Gemma's `-q4_0-unquantized` checkpoints lie on: a block's extremum is level -8."""
    blocks = np.random.default_rng(seed).standard_normal((64, 32)) * 0.02
    extremum = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[:, None], 1)
    d = stored_as("bfloat16", extremum / -8)
    levels = np.clip(np.trunc(blocks / d + 8.5), 0, 15) - 8
    return stored_as("bfloat16", levels * d).reshape(8, 256)


@given(st.integers(0, 2**32 - 1))
def test_q4_0_survives_where_scales_may_be_negative(seed):
    weight = q4_0(seed)
    restored = restore(*quantize(weight, rule_of(("int4", 32)), signed=True))
    np.testing.assert_array_equal(stored_as("bfloat16", restored), weight)


@given(st.integers(0, 2**32 - 1))
def test_q4_0_loses_the_one_level_that_a_positive_scale_lacks(seed):
    """Blocks from -8 to 7 survive; of those from -7 to 8, the error is no more than that of any other scale."""
    weight = q4_0(seed)
    error = np.abs(round_trip(weight, rule_of(("int4", 32))) - weight).reshape(-1, 32)
    highest = weight.reshape(-1, 32).max(-1) > -weight.reshape(-1, 32).min(-1)
    assert (error[~highest] <= 2.0**-8 * np.abs(weight.reshape(-1, 32))[~highest]).all()
    signal = np.square(weight).sum()
    assert 10 * np.log10(signal / np.square(error).sum()) > 26


def test_int8_never_uses_its_lowest_level():
    """Older Arm kernels add two products of int8 in 16 bits, which -128 * -128 twice overflows."""
    weight = np.tile(np.arange(-128, 128, dtype=np.float32), (2, 1)) * np.float32(0.001)
    levels, _ = quantize(weight, rule_of(("int8", 0)))
    assert levels.min() == -127


@pytest.mark.parametrize("kind", RULES)
def test_a_block_of_zeros_has_a_scale_that_runtimes_accept(kind):
    """XNNPACK refuses a model with a scale that is not positive, and a block's scale lies in the file as float16."""
    weight = np.zeros((2, 64), np.float32)
    weight[1] = 1e-9
    levels, scales = quantize(weight, rule_of(kind))
    kept = scales.astype(np.float16) if kind[1] else scales
    assert (kept > 0).all()
    assert not levels[0].any()


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


@pytest.mark.parametrize("kind", [("int8", 0), ("int4", 0), ("int4", 32)])
def test_absmax_is_what_ai_edge_quantizer_does(kind):
    from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor as theirs
    from ai_edge_quantizer.qtyping import QuantGranularity, UniformQuantParams

    (dtype, block), weight = kind, a_weight(0)
    blocks, bits = weight.reshape(len(weight), -1, block or weight.shape[1]), int(dtype[3:])
    granularity = QuantGranularity[f"BLOCKWISE_{block}" if block else "CHANNELWISE"]
    zero, scale = theirs.tensor_zp_scale_from_min_max(blocks.min(-1), blocks.max(-1), bits, True, granularity)
    given = UniformQuantParams(
        num_bits=bits, quantized_dimension=int(block > 0), scale=scale, zero_point=zero, block_size=block
    )
    levels, scales = quantize(weight, rule_of(kind, "absmax"))
    np.testing.assert_allclose(scales, scale, rtol=1e-6)
    np.testing.assert_array_equal(
        levels.reshape(weight.shape), theirs.uniform_quantize(weight, given, is_blockwise_quant=block > 0)
    )
