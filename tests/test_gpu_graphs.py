"""A GPU's graphs without one: what is in them, and that they compute on the CPU what the CPU's do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketdraft.export.rungs import rungs
from pocketdraft.export.tiny import PROMPTS_FILE
from pocketdraft.runtime.cache import Cache
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.graphs import SLOTS_NAME
from pocketdraft.runtime.manifest import read
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.proposal import Proposal
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.validate import validate

TEXTS = [prompt.text[:40] for prompt in read_prompts(PROMPTS_FILE, per_domain=1)]
# What the conversion of a model like this may hold and no GPU delegate runs; it takes all of a graph or nothing.
NOT_ON_A_GPU = {"BROADCAST_TO", "DYNAMIC_UPDATE_SLICE", "GATHER", "GATHER_ND", "SCATTER_ND", "TOPK_V2"}


@pytest.fixture(scope="module", params=["shared", pytest.param("dense", marks=pytest.mark.slow)])
def shape(request) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(shape, make_bundle) -> Path:
    return Path(make_bundle(shape, "f32", device="gpu"))


def graphs_of(bundle: Path, part: str) -> dict[str, dict[str, Any]]:
    """By signature: `operators` counted, composites under their own names; `ranks` of all tensors; `inputs`."""
    from ai_edge_litert import schema_py_generated as schema

    where = read(bundle).parts[part]
    data = (bundle / where.file).read_bytes()[where.offset : where.offset + where.size]
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if name.isupper()}
    codes = [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
    found = {}
    for signature in model.signatureDefs:
        graph = model.subgraphs[signature.subgraphIndex]
        operators: Counter[str] = Counter()
        for operator in graph.operators:
            name = codes[operator.opcodeIndex]
            operators[operator.builtinOptions2.name.decode() if name == "STABLEHLO_COMPOSITE" else name] += 1
        inputs = {one.name.decode(): tuple(graph.tensors[one.tensorIndex].shape) for one in signature.inputs}
        ranks = {len(tensor.shape) for tensor in graph.tensors if tensor.shape is not None}
        found[signature.signatureKey.decode()] = {"operators": operators, "inputs": inputs, "ranks": ranks}
    return found


def test_k_v_is_written_and_read_by_the_composites_that_a_gpu_has_kernels_for(bundle):
    manifest, found = read(bundle), graphs_of(bundle, "target") | graphs_of(bundle, "drafter")
    assert found.keys() == {graph.name for graph in manifest.graphs if "embed" not in graph.role}
    for name, graph in found.items():
        operators = graph["operators"]
        if name == "mtp_drafter":
            assert (operators["odml.cache_update"], operators["odml.runtime_bmm"]) == (0, 2 * 4)
        elif name.startswith("prefill"):  # ends where the last K/V is written
            assert operators["odml.cache_update"] == len(manifest.kv)
        else:
            assert (operators["odml.cache_update"], operators["odml.runtime_bmm"]) == (len(manifest.kv), 2 * 6)
        assert graph["inputs"][SLOTS_NAME] == (1, 1, 1, 7)
        assert not NOT_ON_A_GPU & operators.keys()
        assert max(graph["ranks"]) <= 4


def test_a_centroid_head_is_left_out_unasked(make_bundle):
    heads = {device: read(make_bundle("shared", "f32", device=device)).drafters.mtp.head for device in ("cpu", "gpu")}
    assert heads == {"cpu": "centroid", "gpu": "dense"}


def test_on_the_cpu_the_graphs_agree_with_transformers_and_keep_the_law(bundle, shape, make_pair):
    pair, engine = make_pair(shape), open_engine(bundle, 1)
    found = validate(bundle, engine, TEXTS, 24, rungs(engine.manifest, pair.target, [pair.drafter]), lambda what: None)
    assert max(row.max_error for rows in found.ladder.values() for row in rows) <= 1e-3
    assert found.passed, found.to_json()
    outcomes = {check.name: check.outcome for check in found.checks}
    assert (outcomes["mtp vs plain"], outcomes["LiteRT-LM"]) == ("pass", "pass")
    engine.close()


def test_the_runtime_tells_the_graphs_their_slots_as_litert_lm_does(bundle):
    """The CPU ignores them, so only here would it be seen."""
    engine = open_engine(bundle, 1)
    target = Target(engine)
    cache = Cache(engine.new_cache(), target.context_length, length=7)
    target.verify(cache, 5, Proposal.chain([6, 7, 8, 9]))
    slots = engine._graphs["verify"]._given[SLOTS_NAME]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(slots, np.array([[[[7, 12, 12, 0, 0, 0, 0]]]], np.int32))
    assert slots.dtype == np.int32
    engine.close()
