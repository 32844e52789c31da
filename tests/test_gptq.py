from __future__ import annotations

import itertools

import numpy as np
import pytest

from pocketdraft.quantize.gptq import compensated, gptq
from pocketdraft.quantize.recipe import Rule
from pocketdraft.quantize.weights import quantize, restore, round_trip

ROWS = [("int8", 0), ("int4", 0), ("int4", 32), ("int2", 0)]


def rule_of(kind: tuple[str, int]) -> Rule:
    return Rule(weights="*", dtype=kind[0], block=kind[1])


def a_layer(outputs: int = 16, inputs: int = 192, samples: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    """A weight and inputs that are correlated, as hidden states are."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((outputs, inputs)).astype(np.float32)
    return weight, random.standard_normal((samples, inputs)) @ random.standard_normal((inputs, inputs))


def output_error(weight: np.ndarray, found: np.ndarray, inputs: np.ndarray) -> float:
    return float(np.square(inputs @ (found - weight).T).sum() / np.square(inputs @ weight.T).sum())


@pytest.mark.parametrize("kind", ROWS)
def test_outputs_are_nearer_than_rounding_and_than_ai_edge_quantizers_gptq_brings_them(kind):
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithms.uniform_quantize import gptq as theirs
    from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor as tensors

    (dtype, block), (weight, inputs) = kind, a_layer()
    hessian = inputs.T @ inputs
    granularity = qtyping.QuantGranularity[f"BLOCKWISE_{block}" if block else "CHANNELWISE"]
    _, scale = quantize(weight, Rule(weights="*", dtype=dtype, block=block, scale="absmax"))
    given = qtyping.UniformQuantParams(
        num_bits=int(dtype[3:]),
        quantized_dimension=int(block > 0),
        scale=scale,
        zero_point=np.zeros_like(scale, np.int32),
        block_size=block,
    )
    config = qtyping.TensorQuantizationConfig(num_bits=int(dtype[3:]), symmetric=True, granularity=granularity)
    found = theirs._apply_gptq(weight, given, {"hessian": 2 / len(inputs) * hessian}, config)
    ours = output_error(weight, restore(*gptq(weight, hessian, rule_of(kind))), inputs)
    assert ours < 0.6 * output_error(weight, round_trip(weight, rule_of(kind)), inputs)
    assert ours < output_error(weight, tensors.uniform_dequantize(found.quantized_data, found), inputs)


def test_of_all_the_levels_that_few_columns_may_have_hardly_any_are_better():
    weight, inputs = a_layer(outputs=8, inputs=6)
    levels, scales = gptq(weight, inputs.T @ inputs, Rule(weights="*", dtype="int2"), damping=1e-6)
    every = np.array(list(itertools.product(range(-2, 2), repeat=6)), np.float32)
    for row, found, scale in zip(weight, levels[:, 0], scales[:, 0], strict=True):
        errors = np.square(inputs @ (every * scale - row).T).sum(0)
        assert (errors < np.square(inputs @ (found * scale - row)).sum() * (1 - 1e-6)).mean() < 0.005


def test_no_single_level_can_be_bettered_after_the_sweeps():
    weight, inputs = a_layer(outputs=4, inputs=64)
    hessian = inputs.T @ inputs
    levels, scales = gptq(weight, hessian, Rule(weights="*", dtype="int4"), damping=1e-6, sweeps=50)
    off = levels[:, 0] * scales - weight
    error = np.einsum("ij,jk,ik->i", off, hessian, off)
    for column, step in itertools.product(range(64), (-1, 1)):
        moved = off.copy()
        moved[:, column] += np.where(np.abs(levels[:, 0, column] + step) <= 7, step, 0) * scales[:, 0]
        assert (np.einsum("ij,jk,ik->i", moved, hessian, moved) >= error * (1 - 1e-3)).all()


@pytest.mark.parametrize("kind", ROWS)
def test_a_weight_on_a_grid_comes_out_as_it_is(kind):
    weight, inputs = a_layer()
    weight = round_trip(weight, rule_of(kind)).astype(np.float32)
    levels, scales = gptq(weight, inputs.T @ inputs, rule_of(kind))
    np.testing.assert_array_equal(levels, quantize(weight, rule_of(kind))[0])
    np.testing.assert_allclose(restore(levels, scales), weight, rtol=2.0**-8)


def test_inputs_that_never_come_are_rounded_and_disturb_nothing():
    weight, inputs = a_layer()
    inputs[:, 5:9] = 0
    found = restore(*gptq(weight, inputs.T @ inputs, rule_of(("int4", 0))))
    step = np.abs(weight).max(-1, keepdims=True) / 7
    assert (np.abs(found - weight)[:, 5:9] <= step).all()
    assert output_error(weight, found, inputs) < 0.6 * output_error(
        weight, round_trip(weight, rule_of(("int4", 0))), inputs
    )


def test_compensation_makes_up_for_inputs_that_are_off():
    weight, wanted = a_layer()
    now = wanted @ (np.eye(192) + 0.1 * np.random.default_rng(1).standard_normal((192, 192)) / np.sqrt(192))
    hessian, cross = now.T @ now, (wanted - now).T @ now

    def error(found: np.ndarray) -> float:
        return float(np.square(now @ found.T - wanted @ weight.T).sum())

    half = compensated(weight, hessian, cross, share=0.5, damping=1e-9)
    whole = compensated(weight, hessian, cross, share=1.0, damping=1e-9)
    assert error(whole) < error(half) < error(weight)
    best = np.linalg.lstsq(now, wanted @ weight.T, rcond=None)[0].T
    np.testing.assert_allclose(whole, best, atol=2e-3)
