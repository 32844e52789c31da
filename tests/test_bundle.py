"""Real graphs in the real interpreter: parity with transformers, the law, and LiteRT-LM."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Pair

from pocketdraft.export.rungs import rungs
from pocketdraft.export.tiny import DRAFTER_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.runtime import litert_lm
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer
from pocketdraft.runtime.validate import Validation, validate

SHAPES = ["shared", "dense"]
RECIPES = ["w8", "w4", "mixed"]
TEXTS = [prompt.text[:40] for prompt in read_prompts(PROMPTS_FILE, per_domain=1)]
MakeBundle = Callable[[str, str], Path]


def validation(bundle: Path, pair: Pair, budget: int = 24) -> Validation:
    engine = open_engine(bundle, 1)
    return validate(
        bundle, engine, TEXTS, budget, rungs(engine.manifest, pair.target, [pair.drafter]), lambda what: None
    )


def outcomes(found: Validation) -> dict[str, str]:
    return {check.name: check.outcome for check in found.checks}


@pytest.mark.parametrize("shape", SHAPES)
def test_f32_graphs_agree_with_transformers_and_litert_lm_agrees_with_us(make_bundle: MakeBundle, make_pair, shape):
    found = validation(make_bundle(shape, "f32"), make_pair(shape))
    worst = {rung: max(row.max_error for row in rows) for rung, rows in found.ladder.items()}
    assert worst.keys() == {"transformers -> step", "step -> graph"}
    assert max(worst.values()) <= 1e-3
    assert found.passed
    assert outcomes(found)["LiteRT-LM"] == "pass"


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "recipe"), list(itertools.product(SHAPES, RECIPES)))
def test_quantized_bundles_keep_the_law(make_bundle: MakeBundle, make_pair, shape, recipe):
    found = validation(make_bundle(shape, recipe), make_pair(shape))
    assert list(found.ladder) == ["transformers -> step", "step -> quantized step", "quantized step -> graph"]
    assert found.passed, found.to_json()


def test_weights_are_stored_once_over_all_signatures(make_bundle: MakeBundle, make_pair):
    """Seven graphs of a target must not weigh seven times its weights."""
    engine = open_engine(make_bundle("shared", "f32"), 1)
    weights = sum(p.stat().st_size for p in make_pair("shared").target.glob("*.safetensors"))
    tables = 2048 * (128 + 96) * 4  # the embedders are parts of their own; the head is tied to one of them
    assert engine.manifest.parts["target"].size < (weights - tables) + 2048 * 128 * 4 + 1_500_000


def test_the_phone_s_file_has_the_layout_that_litert_lm_maps(make_bundle: MakeBundle):
    """Golden but for UUID and time stamp: magic and version, parts on 16 KB pages, each a TFLite flatbuffer."""
    bundle = make_bundle("shared", "f32")
    data, manifest = (bundle / "model.litertlm").read_bytes(), open_engine(bundle, 1).manifest
    assert data[:8] == b"LITERTLM"
    assert sorted(manifest.parts) == ["drafter", "embedder", "per_layer_embedder", "target"]
    for part in manifest.parts.values():
        assert part.offset % 16384 == 0
        assert data[part.offset + 4 : part.offset + 8] == b"TFL3"


def test_the_cache_can_be_filled_to_its_last_slot(make_bundle: MakeBundle):
    engine = open_engine(make_bundle("shared", "f32"), 1)
    outputs = {}
    for drafter in ("none", "mtp"):
        session = open_session(engine, drafter, 4)
        rounds = list(session.generate(list(range(10, 50)), 1000))
        outputs[drafter] = [token for emitted in rounds for token in emitted.tokens]
        assert rounds[-1].finish in ("context", "stop")
        assert session.cache.length <= engine.manifest.context_length
    assert outputs["none"] == outputs["mtp"]


def test_the_drafter_cannot_write_kv(make_bundle: MakeBundle):
    manifest = open_engine(make_bundle("shared", "f32"), 1).manifest
    (draft,) = manifest.graphs_of("draft")
    assert [t.name for t in draft.outputs] == ["logits", "projected_activations"]
    read = {t.name for t in draft.inputs if t.is_kv}
    assert read == {f"kv_cache_{which}_{layer}" for which in "kv" for layer in (1, 2)}


def test_litert_lm_metadata_leaves_room_for_a_whole_verify(make_bundle: MakeBundle):
    bundle = make_bundle("shared", "f32")
    if not litert_lm.installed():
        pytest.skip("litert-lm-api is not installed")
    manifest = open_engine(bundle, 1).manifest
    prompt = Tokenizer(bundle / "tokenizer.json", manifest.tokens.bos).encode(TEXTS[0])
    reply = litert_lm.run(bundle / "model.litertlm", TEXTS[:1], 1000, speculate=True)
    assert len(prompt) + reply.tokens[0] <= manifest.context_length


@pytest.mark.slow
def test_w4_weights_are_int4_in_the_graph_where_the_recipe_says_so(make_bundle: MakeBundle):
    """Assert on the graph: operators that the quantizer passed over would stay float unseen."""
    bundle = make_bundle("shared", "w4")
    # q, gate, up and down of six layers; o, gate and projection of six, k and v of three, and two that stand alone
    assert weight_types(bundle, "target") == Counter({"INT4": 6 * 4, "INT8": 6 * 3 + 3 * 2 + 2})
    # q, gate, up and down of four layers and two projections; o of four and the centroids; the selected rows
    assert weight_types(bundle, "drafter") == Counter({"INT4": 4 * 4 + 2, "INT8": 4 + 1, "FLOAT32": 1})


def weight_types(bundle: Path, part: str) -> Counter[str]:
    """Types of what the linear operators of one decode or draft graph multiply with."""
    from ai_edge_litert import schema_py_generated as schema

    manifest = open_engine(bundle, 1).manifest
    where = manifest.parts[part]
    data = (bundle / where.file).read_bytes()[where.offset : where.offset + where.size]
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    names = {value: name for name, value in vars(schema.TensorType).items() if name.isupper()}
    wanted = b"decode" if part == "target" else b"mtp_drafter"
    graph = model.subgraphs[next(d.subgraphIndex for d in model.signatureDefs if d.signatureKey == wanted)]
    linear = schema.BuiltinOperator.FULLY_CONNECTED
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    weights = [graph.tensors[op.inputs[1]] for op in graph.operators if codes[op.opcodeIndex] == linear]
    return Counter(names[tensor.type] for tensor in weights)


def test_the_error_report_lists_the_worst_weight_first(make_bundle: MakeBundle):
    bundle = make_bundle("shared", "f32")
    assert json.loads((bundle / "quantization.json").read_text()) == []


@pytest.mark.slow
def test_the_embedded_pair_is_lossless_and_accepted_as_its_card_says(tmp_path):
    """On the shipped default recipe: what `make demo` shows must hold here too."""
    from pocketdraft.export.pipeline import build
    from pocketdraft.export.plan import Plan, Recipes
    from pocketdraft.quantize.recipe import load
    from pocketdraft.runtime.bench import bench

    recipe = load("mixed")
    out = tmp_path / "bundle"
    build([Plan(TARGET_DIR, (DRAFTER_DIR,), out, Recipes(recipe, recipe, recipe), prefill=(64,), verify=(5,))])
    engine = open_engine(out, 1)
    tokenizer = Tokenizer(out / "tokenizer.json", engine.manifest.tokens.bos)
    domains = bench(Target(engine), tokenizer, read_prompts(PROMPTS_FILE, 8), 64, 4, lambda done: None)
    assert all(domain.identical for domain in domains.values())
    accepted = {name: domain.stats["mtp"].accepted_per_round for name, domain in domains.items()}
    assert accepted["json"] >= 2.5
    assert accepted["code"] >= 2.0


def test_prefill_in_chunks_equals_one_prefill(make_bundle: MakeBundle):
    engine = open_engine(make_bundle("dense", "f32"), 1)
    target, tokens = Target(engine), list(range(5, 45))
    from pocketdraft.runtime.cache import Cache
    from pocketdraft.runtime.proposal import NOTHING

    logits = []
    for chunks in ([tokens], [tokens[:3], tokens[3:20], tokens[20:]]):
        cache = Cache(engine.new_cache(), target.context_length)
        for chunk in chunks:
            target.prefill(cache, chunk)
        logits.append(target.verify(cache, 7, NOTHING).logits)
    assert np.abs(logits[0] - logits[1]).max() < 1e-4
