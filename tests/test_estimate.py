from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from conftest import WIDTHS
from typer.testing import CliRunner

from pocketdraft.export import estimate as estimating
from pocketdraft.export.checkpoint import read_config
from pocketdraft.export.estimate import check_memory, estimate
from pocketdraft.export.plan import Plan, Recipes
from pocketdraft.quantize.recipe import Recipe, Rule, load
from pocketdraft.runtime.cli import app
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import read


def plan_of(pair, recipe: str = "f32", **changes) -> Plan:
    one = load(recipe)
    return Plan(pair.target, (pair.drafter,), Path(), Recipes(one, one, one), **(WIDTHS | changes))


def estimated(plan: Plan):
    return estimate(plan, *map(read_config, (plan.target, *plan.drafters)))


@pytest.mark.parametrize("recipe", ["f32", "w8"])
def test_parts_are_as_large_as_the_exported_ones(make_pair, make_bundle, recipe):
    manifest = read(make_bundle("shared", recipe))
    found = estimated(plan_of(make_pair("shared"), recipe))
    assert [part.name for part in found.parts] == list(dict.fromkeys(graph.part for graph in manifest.graphs))
    for part in found.parts:
        structure = manifest.parts[part.name].size - part.bytes  # operators, names, small constants
        assert 0 < structure < 500_000 * len(part.graphs)
        assert list(part.graphs) == [graph.name for graph in manifest.graphs if graph.part == part.name]


def test_kv_is_as_large_as_the_graphs_take_it(make_pair, make_bundle):
    decode = next(graph for graph in read(make_bundle("shared", "f32")).graphs if graph.name == "decode")
    kv = sum(4 * math.prod(tensor.shape) for tensor in decode.inputs if tensor.is_kv)
    assert estimated(plan_of(make_pair("shared"))).kv_bytes[WIDTHS["context"]] == kv


def test_a_longer_context_grows_the_full_layers_only(make_pair):
    kv = estimated(plan_of(make_pair("shared"))).kv_bytes
    full = 2 * 4 * 64  # K and V of the one full layer that owns any, float32, a head of 64
    assert kv[32768] - kv[16384] == 16384 * full


def test_planning_reads_no_weights(make_pair, tmp_path):
    pair = make_pair("shared")
    for part in ("target", "drafter"):
        (tmp_path / part).mkdir()
        shutil.copy(getattr(pair, part) / "config.json", tmp_path / part)
    words = ["plan", "--target", str(tmp_path / "target"), "--drafter", str(tmp_path / "drafter"), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["bundle_bytes"] > 0
    assert all(limit["kept"] for limit in found["limits"])


def test_too_little_memory_is_refused_with_the_figure_needed(make_pair):
    plan = plan_of(make_pair("shared"), max_memory=5e8)
    with pytest.raises(
        PocketdraftError, match=r"--max-memory is 0\.5 GB, the litert export needs about \d\.\d GB; allow"
    ):
        check_memory(plan, estimated(plan))
    check_memory(plan_of(make_pair("shared"), max_memory=4e9), estimated(plan))


def test_what_no_machine_has_is_refused_unasked(make_pair, monkeypatch):
    plan = plan_of(make_pair("shared"), backend="onnx")
    monkeypatch.setattr(estimating, "physical_memory", lambda: 10**8)
    with pytest.raises(PocketdraftError, match=r"This machine has 0\.1 GB, the onnx export .* --backend litert"):
        check_memory(plan, estimated(plan))


def test_export_refuses_it_before_any_work(make_pair, tmp_path, capfd):
    pair = make_pair("shared")
    words = ["export", "--target", str(pair.target), "--drafter", str(pair.drafter), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--max-memory", "0.1"])
    assert isinstance(done.exception, PocketdraftError)
    assert "--max-memory is 0.1 GB" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_whole_float_model_is_more_than_a_phone_takes():
    done = CliRunner().invoke(app, ["plan", "--size", "e2b", "--recipe", "f32", "--json"])
    assert done.exit_code == 1
    broken = [limit["name"] for limit in json.loads(done.stdout)["limits"] if not limit["kept"]]
    assert broken == ["one weight", "one file"]


def test_a_size_and_a_folder_are_one_too_many(tmp_path):
    done = CliRunner().invoke(app, ["plan", "--size", "e2b", "--target", str(tmp_path)])
    assert "Both --size e2b and a folder were given" in str(done.exception)


@pytest.mark.parametrize(
    ("backend", "rule", "says"),
    [
        ("litert", {"dtype": "int8", "block": 32}, r"LiteRT has no kernel for target\..* as int8 in blocks of 32"),
        ("litert", {"dtype": "int2", "block": 32}, r"LiteRT has no kernel for target\..* as int2 in blocks of 32"),
        ("executorch", {"dtype": "int2"}, r"asks for int2 in embedder.table, the executorch backend has int8 and int4"),
        ("onnx", {"dtype": "int2"}, r"asks for int2 in target\..*, the onnx backend has int8 and int4"),
        ("executorch", {"dtype": "int4", "block": 32}, r"a scale a row, the recipe asks for blocks of 32 in embedder"),
        ("onnx", {"dtype": "int4", "block": 64}, r"asks for blocks of 64 in .*, whose rows have 16 inputs"),
    ],
)
def test_a_rule_without_a_kernel_is_refused_by_the_weights_name(make_pair, backend, rule, says):
    pair, recipe = make_pair("shared"), Recipe(name="own", rule=(Rule(weights="*", **rule),))
    if backend == "executorch":
        recipe = Recipe(name="own", rule=(Rule(weights="embedder.*", **rule),))
    plan = Plan(pair.target, (pair.drafter,), Path(), Recipes(recipe, recipe, recipe), backend, **WIDTHS)
    with pytest.raises(PocketdraftError, match=says):
        estimated(plan)
