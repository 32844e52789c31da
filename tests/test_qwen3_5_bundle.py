"""Qwen3.5's graphs on every backend: the ladder, the loop, and what it takes back."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from qwen3_5 import PROMPT, bundle_of, generated
from test_llama_bundle import drafted

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.rungs import eager_pair, rungs
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import MANIFEST_NAME, Backend, read
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.validate import validate

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("backend", get_args(Backend))
def test_its_graphs_are_transformers_and_its_text_too(qwen_pair, backend):
    bundle = bundle_of(qwen_pair, backend, "f32")
    engine = open_engine(bundle, 1)
    found = validate(
        bundle, engine, ["a" * 20], 24, rungs(engine.manifest, qwen_pair[0], qwen_pair[1:]), lambda what: None
    )
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
        assert [token for emitted in rounds for token in emitted.tokens] == generated(qwen_pair[0], PROMPT, 40)
    assert drafted(engine) == drafted(eager_pair(*map(Checkpoint.open, qwen_pair), context=96))
    engine.close()


def test_quantized_ones_are_as_near_as_their_step(qwen_pair):
    bundle = bundle_of(qwen_pair, "onnx", "w8")
    engine = open_engine(bundle, 1)
    found = validate(
        bundle, engine, ["a" * 20], 24, rungs(engine.manifest, qwen_pair[0], qwen_pair[1:]), lambda what: None
    )
    assert found.passed, found.to_json()
    engine.close()


@pytest.mark.parametrize("backend", get_args(Backend))
def test_a_sequence_after_another_finds_nothing_of_it(qwen_pair, backend):
    """The memory of one that has ended may serve the next."""
    engine = open_engine(bundle_of(qwen_pair, backend, "f32"), 1)
    texts = []
    for prompt in (PROMPT, [9, 8, 9, 8, 9], PROMPT):
        rounds = open_session(engine, "mtp_heads", 4).generate(prompt, 20)
        texts.append([token for emitted in rounds for token in emitted.tokens])
    assert texts[0] == texts[2] == generated(qwen_pair[0], PROMPT, 20)
    engine.close()


def test_a_manifest_that_does_not_say_it_is_refused(qwen_pair, tmp_path):
    """Nothing else tells a runtime how far it may go back."""
    said = json.loads((bundle_of(qwen_pair, "onnx", "f32") / MANIFEST_NAME).read_text())
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(said | {"takes_back": None}))
    with pytest.raises(PocketdraftError, match="has recurrent layers and no takes_back; export the bundle again"):
        read(tmp_path)
