"""Checkpoints that come quantized: what is read of each format is what its own library makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.kv_int8 import steps_in
from pocketdraft.export.own_recipe import own_recipe
from pocketdraft.export.packed import Packed, unpacked
from pocketdraft.export.stored import stored_in
from pocketdraft.quantize.recipe import Rule, load
from pocketdraft.quantize.weights import quantize, round_trip
from pocketdraft.runtime.errors import PocketdraftError

ROWS, COLUMNS = 6, 64


def levels_of(bits: int, rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    half = 1 << (bits - 1)
    return torch.from_numpy(np.random.default_rng(bits).integers(-half, half, (rows, columns))).to(torch.int32)


def in_words(levels: torch.Tensor, bits: int, size: int) -> torch.Tensor:
    """Unsigned, the first in the lowest bits, along the last axis."""
    parts = (levels + (1 << (bits - 1))).to(torch.int64).reshape(len(levels), -1, size // bits)
    return (parts << torch.arange(0, size, bits)).sum(-1)


def opened(folder: Path, tensors: dict[str, torch.Tensor], config: dict | None) -> dict:
    save_file(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )
    return dict(unpacked(folder / "config.json", config, stored_in(folder / "model.safetensors")))


def ct(**weights: object) -> dict:
    group = {"weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"} | weights}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (8, 0), (4, 0), (2, 32)])
def test_compressed_tensors_rows_come_out_level_by_level(tmp_path, bits, block):
    levels = levels_of(bits)
    scales = torch.rand(ROWS, COLUMNS // (block or COLUMNS)).to(torch.bfloat16)
    tensors = opened(
        tmp_path,
        {
            "a.weight_packed": in_words(levels, bits, 32).to(torch.int32),
            "a.weight_scale": scales,
            "a.weight_shape": torch.tensor([ROWS, COLUMNS]),
            "norm.weight": torch.ones(3),
        },
        ct(),
    )
    assert set(tensors) == {"a.weight", "norm.weight"}
    weight = tensors["a.weight"]
    expected = levels * scales.float().repeat_interleave(block or COLUMNS, 1)
    torch.testing.assert_close(weight.read(), expected.to(torch.float32), rtol=0, atol=0)
    torch.testing.assert_close(torch.cat(list(weight.chunks())), weight.read(), rtol=0, atol=0)
    torch.testing.assert_close(weight.rows_at([4, 1]), weight.read()[[4, 1]], rtol=0, atol=0)
    assert (weight.bits, weight.block) == (bits, block)


def test_a_packed_weight_exports_with_its_own_levels_and_scales(tmp_path):
    levels, scales = levels_of(4), torch.rand(ROWS, 2).to(torch.bfloat16) + 0.01
    weight = opened(
        tmp_path,
        {
            "a.weight_packed": in_words(levels, 4, 32).to(torch.int32),
            "a.weight_scale": scales,
            "a.weight_shape": torch.tensor([ROWS, COLUMNS]),
        },
        ct(),
    )["a.weight"]
    rule = own_recipe({"target.a": weight}, load("w8")).rule_for("target.a")
    assert rule == Rule(weights="target.a", dtype="int4", block=32)
    found, steps = quantize(weight.read().numpy(), rule)
    np.testing.assert_array_equal(found.reshape(ROWS, COLUMNS), levels)
    np.testing.assert_array_equal(steps, scales.float())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gemmas_own_format_is_read_as_transformers_reads_it(tmp_path, bits):
    from transformers.integrations.gemma_quant import QuantizedEmbedding, QuantizedLinear

    linear = QuantizedLinear(COLUMNS, ROWS, num_bits=bits)
    table = QuantizedEmbedding(ROWS, COLUMNS, torch.float32, num_bits=bits)
    packed = levels_of(8).to(torch.int8) if bits == 8 else in_words(levels_of(bits), bits, 8).to(torch.uint8)
    for module, name in ((linear, "weight"), (table, "embedding_quantized")):
        module.register_parameter(name, torch.nn.Parameter(packed, requires_grad=False))
    linear.weight_scale.data, table.embedding_scale.data = torch.rand(ROWS, 1), torch.rand(ROWS, 1)
    tensors = {f"model.q_proj.{name}": tensor.detach() for name, tensor in linear.state_dict().items()}
    tensors |= {f"model.embed.{name}": tensor.detach() for name, tensor in table.state_dict().items()}
    base = "model.layers.0.self_attn"
    tensors |= {f"{base}.k_cache_scale": torch.tensor(0.25), f"{base}.v_cache_scale": torch.tensor(0.5)}
    config = {"quant_method": "gemma", "num_bits": 4, "module_quant_configs": {"q_proj|embed": {"num_bits": bits}}}
    found = opened(tmp_path, tensors, config)
    torch.testing.assert_close(found["model.q_proj.weight"].read(), linear._dequantize_weights(), rtol=0, atol=0)
    torch.testing.assert_close(found["model.embed.weight"].read(), table.weight, rtol=0, atol=0)
    assert steps_in(found) == {0: (0.25, 0.5)}


@pytest.mark.parametrize(("bits", "groups"), [(4, 2), (8, 1)])
def test_gptq_checkpoints_are_packed_along_the_inputs(tmp_path, bits, groups):
    levels, scales = levels_of(bits), torch.rand(groups, ROWS).to(torch.float16)
    tensors = opened(
        tmp_path,
        {
            "a.qweight": in_words(levels, bits, 32).T.to(torch.int32),
            "a.scales": scales,
            "a.qzeros": torch.zeros(groups, 1, dtype=torch.int32),
            "a.g_idx": torch.arange(COLUMNS, dtype=torch.int32) // (COLUMNS // groups),
        },
        {"quant_method": "gptq", "bits": bits, "sym": True, "desc_act": False},
    )
    expected = levels * scales.float().T.repeat_interleave(COLUMNS // groups, 1)
    torch.testing.assert_close(tensors["a.weight"].read(), expected.to(torch.float32), rtol=0, atol=0)
    torch.testing.assert_close(tensors["a.weight"].rows_at([5, 0]), expected[[5, 0]].to(torch.float32), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes'; pocketdraft reads .*float weights"),
        (ct(symmetric=False), "symmetric=False for group_0; pocketdraft reads symmetric integers"),
        (ct(type="float"), "type 'float'"),
        ({"quant_method": "gptq", "bits": 4, "sym": True, "desc_act": True}, "desc_act=True"),
        ({"quant_method": "gptq", "bits": 3, "sym": True}, "bits=3"),
    ],
)
def test_a_format_that_is_not_read_is_named_with_the_mend(tmp_path, config, says):
    with pytest.raises(PocketdraftError, match=says):
        opened(tmp_path, {"a.weight": torch.zeros(2, 2)}, config)


def test_zero_points_that_the_configuration_does_not_mention_are_refused(tmp_path):
    with pytest.raises(PocketdraftError, match=r"a\.weight_zero_point: zero points and act-order are not read"):
        opened(tmp_path, {"a.weight_zero_point": torch.zeros(2, 2)}, ct())


def test_a_scale_that_is_missing_is_named(tmp_path):
    packed = {"a.weight_packed": torch.zeros(2, 4, dtype=torch.int32), "a.weight_shape": torch.tensor([2, 32])}
    with pytest.raises(PocketdraftError, match=r"a\.weight_packed without a\.weight_scale"):
        opened(tmp_path, packed, ct())


def test_a_packed_target_opens_like_any_other(tmp_path, make_pair):
    """The embedded architecture, its feed-forward weights packed: same names, same shapes, same small parameters."""
    source = make_pair("shared").target
    tensors, config = load_file(source / "model.safetensors"), json.loads((source / "config.json").read_text())
    for name in [name for name in tensors if ".mlp." in name]:
        weight, base = tensors.pop(name).float(), name.removesuffix(".weight")
        levels, scales = quantize(weight.numpy(), Rule(weights="*", dtype="int4", block=32))
        tensors[f"{base}.weight_packed"] = in_words(
            torch.from_numpy(levels).reshape(weight.shape).to(torch.int32), 4, 32
        ).to(torch.int32)
        tensors[f"{base}.weight_scale"] = torch.from_numpy(scales).to(torch.bfloat16)
        tensors[f"{base}.weight_shape"] = torch.tensor(weight.shape)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": ct()}))
    plain, packed = Checkpoint.open(source), Checkpoint.open(tmp_path)
    assert {n: s.shape for n, s in packed.tensors.items()} == {n: s.shape for n, s in plain.tensors.items()}
    assert sum(isinstance(stored, Packed) for stored in packed.tensors.values()) == 18


@pytest.mark.parametrize("kind", [("int4", 32), ("int4", 128), ("int4", 0), ("int8", 0), ("int2", 0)])
def test_the_own_recipe_finds_the_grid_of_float_weights(tmp_path, kind):
    random = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32))
    trained = torch.from_numpy(round_trip(random.numpy(), Rule(weights="*", dtype=kind[0], block=kind[1])))
    tensors = opened(tmp_path, {"grid.weight": trained.to(torch.bfloat16), "float.weight": random}, None)
    names = {"target.grid": tensors["grid.weight"], "target.float": tensors["float.weight"]}
    recipe = own_recipe(names, load("w8"))
    found = recipe.rule_for("target.grid")
    assert (found.dtype, found.block) == kind
    assert recipe.rule_for("target.float") == load("w8").rule_for("target.float")
