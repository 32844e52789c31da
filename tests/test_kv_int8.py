"""K/V as int8: the arithmetic, and the graphs of every backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FEW_WIDTHS
from test_engines import PROMPT, SLOW, TEXTS, generate

from pocketdraft.export.calibrate import calibrate
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.kv_int8 import Int8KV
from pocketdraft.export.pipeline import build
from pocketdraft.export.plan import Plan, Recipes
from pocketdraft.export.rungs import rungs
from pocketdraft.export.step import Plain, StepKV
from pocketdraft.quantize.recipe import load
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.graphs import KVSteps
from pocketdraft.runtime.validate import validate

HEADS, SLOTS, SIZE, ROWS = 2, 16, 8, 3
STEPS = {4: KVSteps(4.0 / 127, 3.0 / 127)}

FLOAT = Recipes(load("f32"), load("f32"), load("f32"))


def caches(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    shapes = {"kv_cache_k_4": (1, HEADS, SLOTS, SIZE), "kv_cache_v_4": (1, HEADS, SIZE, SLOTS)}
    return {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}


def both(context: int = SLOTS, start: int = 5) -> tuple[Int8KV, StepKV]:
    given = torch.tensor([start], dtype=torch.int32), torch.tensor([start + ROWS - 1], dtype=torch.int32), context
    return (
        Int8KV(caches(torch.int8), *given, Plain(), STEPS),
        StepKV(caches(torch.float32), *given, Plain()),
    )


def rows(seed: int) -> torch.Tensor:
    return torch.randn(1, HEADS, ROWS, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("context", "start"), [(SLOTS, 5), (64, 14)])  # the second is a ring that wraps around
def test_what_is_written_is_read_within_half_a_step(context, start):
    int8, plain = both(context, start)
    for kv in (int8, plain):
        kv.write(4, rows(0), rows(1))
    for ours, theirs, scale in zip(int8.read(4), plain.read(4), (STEPS[4].keys, STEPS[4].values), strict=True):
        assert (ours * scale - theirs).abs().max() <= scale * 0.5001
    assert all(tensor.dtype == torch.int8 for tensor in int8.tensors.values())


def test_attention_is_that_over_the_rounded_cache():
    int8, plain = both()
    key, value = rows(0), rows(1)
    int8.write(4, key, value)
    plain.write(4, (key / STEPS[4].keys).round() * STEPS[4].keys, (value / STEPS[4].values).round() * STEPS[4].values)
    query, mask = rows(2), torch.zeros(1, 1, ROWS, SLOTS)
    torch.testing.assert_close(
        int8.attend(query, *int8.read(4), mask), plain.attend(query, *plain.read(4), mask), rtol=1e-5, atol=1e-6
    )


def test_keys_beyond_their_reach_are_clipped_and_do_not_wrap_around():
    int8, _ = both()
    int8.write(4, torch.full((1, HEADS, ROWS, SIZE), 9.0), torch.full((1, HEADS, ROWS, SIZE), -9.0))
    keys, values = int8.read(4)
    assert keys.max() == 127
    assert values.min() == -127


def test_a_layer_that_shares_sees_what_was_written_after_it_was_read():
    int8, _ = both()
    assert not int8.read(4)[0].any()
    int8.write(4, rows(0), rows(1))
    assert int8.read(4)[0].any()
    assert int8.read(4)[0] is int8.read(4)[0]


# --- graphs


def plan_of(target: Path, drafter: Path, out: Path, backend: str = "litert") -> Plan:
    return Plan(target, (drafter,), out, FLOAT, backend, kv="int8", **FEW_WIDTHS)


@pytest.fixture(scope="module")
def noted(make_pair, tmp_path_factory) -> Path:
    """A target whose checkpoint says how far keys and values reach."""
    out = tmp_path_factory.mktemp("noted") / "target"
    texts = np.random.default_rng(0).integers(6, 2000, (8, 140)).tolist()
    target = Checkpoint.open(make_pair("shared").target)
    assert calibrate(target, FLOAT, texts, out) == {"tokens": 8 * 140, "weights": 0}
    return out


@pytest.mark.parametrize(
    "backend", ["litert", pytest.param("onnx", marks=SLOW), pytest.param("executorch", marks=SLOW)]
)
def test_a_bundle_keeps_k_v_as_int8_and_stays_lossless(noted, make_pair, tmp_path, backend):
    """Its sliding layers are rings that wrap around, and its last layers read what others have written."""
    drafter = make_pair("shared").drafter
    (manifest,) = build([plan_of(noted, drafter, tmp_path / "int8", backend)])
    engine = open_engine(tmp_path / "int8", 1)
    kv = engine.read_kv(engine.new_cache())
    assert {array.dtype for array in kv.values()} == {np.dtype(np.int8)}
    found = validate(tmp_path / "int8", engine, TEXTS, 24, rungs(manifest, noted, [drafter]), lambda what: None)
    assert list(found.ladder) == ["transformers -> step", "step -> quantized step", "quantized step -> graph"]
    assert found.passed, found.to_json()
    rows = {row.graph: row for row in found.ladder["step -> quantized step"]}
    assert 0 < rows["decode"].kl < 0.01
    rounded_alike = {row.graph: row for row in found.ladder["quantized step -> graph"]}
    assert rounded_alike["decode"].mean_error < 0.1 * rows["decode"].mean_error
    for name in ("mtp", "prompt_lookup"):
        assert generate(engine, name, PROMPT, 60) == generate(engine, "none", PROMPT, 60)
    engine.close()


def test_a_checkpoint_that_does_not_say_how_far_they_reach_is_refused(make_pair, tmp_path):
    pair = make_pair("shared")
    plan = plan_of(pair.target, pair.drafter, tmp_path / "out")
    with pytest.raises(PocketdraftError, match=r"--kv is int8, .* does not say how far .* of layer 0 reach; run"):
        build([plan])
    assert not (tmp_path / "out").exists()


def test_a_gpu_s_graphs_keep_floats():
    with pytest.raises(PocketdraftError, match="--device is gpu, --kv is int8"):
        replace(plan_of(Path(), Path(), Path()), device="gpu")
