"""Qwen3.5's graphs on every backend: the ladder, the loop, and what it takes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from conftest import FEW_WIDTHS
from kept import kept
from qwen3_5 import PROMPT, checkpoint_with_head, generated
from test_llama_bundle import drafted

from pocketdraft.export import own_head
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.pipeline import build
from pocketdraft.export.plan import Plan, Recipes
from pocketdraft.export.rungs import eager_pair, rungs
from pocketdraft.quantize.recipe import load
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import MANIFEST_NAME, Backend, read
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.validate import validate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    target = checkpoint_with_head(tmp_path_factory.mktemp("target"))
    head = tmp_path_factory.mktemp("head") / "own"
    own_head.extract(target, head)
    return target, head


def bundle_of(pair: tuple[Path, Path], backend: Backend, recipe: str) -> Path:
    own = load(recipe)

    def write(out: Path) -> None:
        build([Plan(pair[0], pair[1:], out, Recipes(own, own, own), backend, **FEW_WIDTHS)])

    return kept(f"qwen3_5-{recipe}-{backend}", write)


@pytest.mark.parametrize("backend", get_args(Backend))
def test_its_graphs_are_transformers_and_its_text_too(pair, backend):
    bundle = bundle_of(pair, backend, "f32")
    engine = open_engine(bundle, 1)
    found = validate(bundle, engine, ["a" * 20], 24, rungs(engine.manifest, *pair[:1], pair[1:]), lambda what: None)
    assert found.passed, found.to_json()
    outcomes = {check.name: check.outcome for check in found.checks}
    assert outcomes["mtp_heads vs plain"] == outcomes["prompt_lookup vs plain"] == "pass"
    assert outcomes["LiteRT-LM"] == "skipped"
    errors = [row.max_error for row in found.ladder["transformers -> step"]] + [
        row.max_error for row in found.ladder["step -> graph"]
    ]
    assert max(errors) < 1e-3
    for drafter in ("none", "prompt_lookup", "mtp_heads"):
        rounds = open_session(engine, drafter, 4).generate(PROMPT, 40)
        assert [token for emitted in rounds for token in emitted.tokens] == generated(pair[0], PROMPT, 40)
    assert drafted(engine) == drafted(eager_pair(*map(Checkpoint.open, pair), context=96))
    engine.close()


def test_quantized_ones_are_as_near_as_their_step(pair):
    bundle = bundle_of(pair, "onnx", "w8")
    engine = open_engine(bundle, 1)
    found = validate(bundle, engine, ["a" * 20], 24, rungs(engine.manifest, *pair[:1], pair[1:]), lambda what: None)
    assert found.passed, found.to_json()
    engine.close()


@pytest.mark.parametrize("backend", get_args(Backend))
def test_a_sequence_after_another_finds_nothing_of_it(pair, backend):
    """The memory of one that has ended may serve the next."""
    engine = open_engine(bundle_of(pair, backend, "f32"), 1)
    texts = []
    for prompt in (PROMPT, [9, 8, 9, 8, 9], PROMPT):
        rounds = open_session(engine, "mtp_heads", 4).generate(prompt, 20)
        texts.append([token for emitted in rounds for token in emitted.tokens])
    assert texts[0] == texts[2] == generated(pair[0], PROMPT, 20)
    engine.close()


def test_a_manifest_that_does_not_say_it_is_refused(pair, tmp_path):
    """Nothing else tells a runtime how far it may go back."""
    said = json.loads((bundle_of(pair, "onnx", "f32") / MANIFEST_NAME).read_text())
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(said | {"takes_back": None}))
    with pytest.raises(PocketdraftError, match="has recurrent layers and no takes_back; export the bundle again"):
        read(tmp_path)
