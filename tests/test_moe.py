"""Experts as tables: what loading and looking them up must not change."""

from __future__ import annotations

import functools
import json
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextExperts, Gemma4TextRouter

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.families import load_target
from pocketdraft.export.models import gemma4_moe
from pocketdraft.export.models.gemma4_moe import Experts, MixtureOfExperts, Router
from pocketdraft.export.rungs import rungs
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import Backend
from pocketdraft.runtime.validate import validate

HIDDEN, MOE = 32, MixtureOfExperts(experts=6, top=3, intermediate=8)


@pytest.fixture
def both() -> tuple[Gemma4TextExperts, Experts]:
    """transformers' experts, and ours over the same memory: their tensors are views of our tables."""
    torch.manual_seed(0)
    config = Gemma4TextConfig(hidden_size=HIDDEN, num_experts=MOE.experts, moe_intermediate_size=MOE.intermediate)
    config._experts_implementation = "eager"
    theirs, ours = Gemma4TextExperts(config), Experts(HIDDEN, MOE)
    for name, shape in ours.checkpoint_shapes.items():
        table = getattr(ours, name).weight
        table.data.normal_(0.0, table.shape[1] ** -0.5)
        setattr(theirs, name, torch.nn.Parameter(table.data.view(shape)))
    return theirs, ours


@pytest.fixture(params=[1, 2, 100])
def at_once(request, monkeypatch) -> None:
    """Tokens whose experts are looked up at a time: alone, with one left over, all."""
    monkeypatch.setattr(gemma4_moe, "LOOKUP_BYTES", request.param * 4 * MOE.top * MOE.intermediate * HIDDEN)


@pytest.mark.parametrize("tokens", [1, 5])
@torch.no_grad()
def test_experts_agree_with_transformers_whoever_takes_whom(both, at_once, tokens):
    theirs, ours = both
    x, weights = torch.randn(tokens, HIDDEN), torch.rand(tokens, MOE.top)
    # The first and the last expert, and two tokens with the same ones.
    chosen = torch.tensor([[5, 0, 3], [1, 2, 4], [5, 0, 3], [0, 1, 2], [3, 4, 5]])[:tokens]
    wanted = theirs(x, chosen, weights)
    found = ours(x, weights, chosen.to(torch.int32))
    assert torch.allclose(found, wanted, atol=1e-5)


@torch.no_grad()
def test_infinite_activations_read_no_other_experts_rows(both, at_once):
    """Lookups wait for the products before them by adding a zero made of these, which infinity must not spoil."""
    _, ours = both
    x = torch.full((2, HIDDEN), float("inf"))
    x[1] = 1.0
    chosen = torch.tensor([[0, 1, 2], [3, 4, 5]], dtype=torch.int32)
    weights = torch.ones(2, MOE.top)
    assert torch.allclose(ours(x, weights, chosen)[1], ours(x[1:], weights[1:], chosen[1:])[0])


@torch.no_grad()
def test_the_router_weighs_and_chooses_as_transformers_does():
    torch.manual_seed(0)
    config = Gemma4TextConfig(hidden_size=HIDDEN, num_experts=MOE.experts, top_k_experts=MOE.top)
    theirs, ours = Gemma4TextRouter(config), Router(HIDDEN, MOE, config.rms_norm_eps)
    for weight in theirs.parameters():
        weight.normal_(1.0, 0.5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(7, HIDDEN)
    _, weights, chosen = theirs(x)
    found, taken = ours(x)
    assert torch.equal(taken, chosen)
    assert torch.allclose(found, weights, atol=1e-6)


def test_no_more_experts_than_fit_are_looked_up_at_a_time(both, at_once, monkeypatch):
    _, ours = both
    sizes = []
    original = gemma4_moe._rows
    monkeypatch.setattr(gemma4_moe, "_rows", lambda *given: sizes.append(original(*given).nbytes) or original(*given))
    ours(torch.randn(5, HIDDEN), torch.rand(5, MOE.top), torch.zeros(5, MOE.top, dtype=torch.int32))
    assert max(sizes) <= gemma4_moe.LOOKUP_BYTES
    assert sum(sizes) == 5 * 4 * MOE.top * 3 * MOE.intermediate * HIDDEN


@pytest.mark.parametrize(("most", "groups"), [(32, 5), (3, 3), (2, 2), (1, 1)])
def test_a_wide_graph_looks_up_more_at_a_time_than_fits(both, monkeypatch, most, groups):
    """Else it would have so many operators that no converter ends."""
    _, ours = both
    monkeypatch.setattr(gemma4_moe, "LOOKUP_BYTES", 1)
    monkeypatch.setattr(gemma4_moe, "MOST_GROUPS", most)
    calls, original = [], gemma4_moe._rows
    monkeypatch.setattr(gemma4_moe, "_rows", lambda *given: calls.append(given) or original(*given))
    ours(torch.randn(5, HIDDEN), torch.rand(5, MOE.top), torch.zeros(5, MOE.top, dtype=torch.int32))
    assert len(calls) == 3 * groups


def test_litert_looks_up_apart_and_reads_no_other_experts(both, tmp_path, monkeypatch):
    """The converter folds what it knows to be zero, and a delegate takes all products into one part of the graph: then
    all lookups would come first. And tables must be operands of EMBEDDING_LOOKUP, which has kernels for int8 and int4.
    """
    from ai_edge_litert.interpreter import Interpreter
    from litert_torch._convert.interface import Converter

    _, ours = both
    monkeypatch.setattr(gemma4_moe, "LOOKUP_BYTES", 2 * 4 * MOE.top * MOE.intermediate * HIDDEN)
    feed = {
        "x": torch.randn(5, HIDDEN),
        "weights": torch.rand(5, MOE.top),
        "chosen": torch.tensor([[5, 0, 3], [1, 2, 4], [5, 0, 3], [0, 1, 2], [3, 4, 5]], dtype=torch.int32),
    }
    converter = Converter()
    converter.add_signature("experts", ours.eval(), sample_kwargs=feed)
    converter.convert(strict_export=False).export(str(tmp_path / "experts.tflite"))
    interpreter = Interpreter(str(tmp_path / "experts.tflite"), num_threads=1)
    run = interpreter.get_signature_runner("experts")
    (found,) = run(**{name: tensor.numpy() for name, tensor in feed.items()}).values()
    assert np.allclose(found, ours(**feed).detach(), atol=1e-5)

    operators = interpreter._get_ops_details()
    made_by = {int(tensor): op for op in operators if op["op_name"] != "DELEGATE" for tensor in op["outputs"]}
    lookups = [op for op in operators if op["op_name"] == "EMBEDDING_LOOKUP"]
    tables = {tuple(table.weight.shape) for table in (ours.gate_up_proj, ours.down_proj)}
    shapes = {t["index"]: tuple(t["shape"]) for t in interpreter.get_tensor_details()}
    assert {shapes[int(tensor)] for op in lookups for tensor in op["inputs"]} & tables == tables

    @functools.cache
    def waits(index: int) -> bool:
        """Whether a product comes before the operator."""
        inputs = next(op["inputs"] for op in operators if op["index"] == index)
        before = [made_by[int(tensor)] for tensor in inputs if int(tensor) in made_by]
        return any(op["op_name"] == "BATCH_MATMUL" or waits(op["index"]) for op in before)

    # Three groups of tokens, of each gates, ups and outputs: all but the very first lookup wait.
    assert sorted(waits(op["index"]) for op in lookups) == [False] + 8 * [True]


@pytest.mark.slow
@pytest.mark.parametrize("backend", get_args(Backend))
def test_graphs_with_experts_agree_with_transformers(make_bundle, make_pair, backend):
    pair, bundle = make_pair("26b-a4b"), make_bundle("26b-a4b", "f32", backend)
    engine = open_engine(bundle, 1)
    texts = ["def largest(values):", "In the beginning"]
    found = validate(bundle, engine, texts, 24, rungs(engine.manifest, pair.target, [pair.drafter]), lambda what: None)
    assert max(row.max_error for rows in found.ladder.values() for row in rows) <= 1e-3
    assert found.passed, found.to_json()
    engine.close()


def edited(folder, tmp_path, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    return Checkpoint.open(tmp_path)


NAME = "model.layers.1.experts.down_proj"


def test_mis_shaped_experts_show_both_shapes(make_pair, tmp_path):
    checkpoint = edited(make_pair("26b-a4b").target, tmp_path, lambda w: w.update({NAME: torch.zeros(16, 32, 64)}))
    with pytest.raises(PocketdraftError, match=r"\[16, 32, 64\], config.json asks for \[16, 64, 32\]"):
        load_target(checkpoint)


def test_missing_experts_are_named(make_pair, tmp_path):
    checkpoint = edited(make_pair("26b-a4b").target, tmp_path, lambda w: w.pop(NAME))
    with pytest.raises(PocketdraftError, match=r"lacks the weight layers\.1\.experts\.down_proj"):
        load_target(checkpoint)


def test_experts_of_a_dense_configuration_are_an_extra_weight(make_pair, tmp_path):
    checkpoint = edited(make_pair("26b-a4b").target, tmp_path, lambda w: None)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"enable_moe_block": False}))
    with pytest.raises(PocketdraftError, match="does not know"):
        load_target(Checkpoint.open(checkpoint.folder))
