"""Tokens that leave the target early: what runs, what is kept, and what is written of it."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from scripted import next_token, plain, scripted_manifest
from scripted_drafters import EveryDrafter, every_drafter

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.rungs import eager_pair
from pocketdraft.export.tiny import EXITS_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.runtime.calm import ExitRule, Measure
from pocketdraft.runtime.engine import Engine
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.graphs import GraphSpec, TensorSpec
from pocketdraft.runtime.leaving import LeavingTarget, certify, write_calm
from pocketdraft.runtime.manifest import MANIFEST_NAME, Manifest, read
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer

PROMPT = [1, 2, 3]


def rule(threshold: float, measure: Measure = "gap") -> ExitRule:
    return ExitRule(measure, threshold, 40)


def skipping(fills: bool = True) -> EveryDrafter:
    """The exit lies after the first of three layers that keep K/V, and has a classifier."""
    manifest = every_drafter(200)
    score = TensorSpec(name="score", dtype="float32", shape=(1, 1))
    graphs = [
        graph.model_copy(update={"outputs": (score,)}) if graph.role == "exit_draft" else graph
        for graph in manifest.graphs
    ]
    if fills:
        graphs.append(GraphSpec(name="exit_fill", role="exit_fill", part="target", width=1, inputs=(), outputs=()))
    kv = tuple(manifest.kv[0].model_copy(update={"layer": layer}) for layer in range(3))
    return EveryDrafter(manifest.model_copy(update={"graphs": tuple(graphs), "kv": kv}))


def text(target: Target, prompt: list[int], budget: int = 30, drafter: str = "none") -> list[int]:
    session = open_session(target.engine, drafter, 2, target)
    return [token for emitted in session.generate(prompt, budget) for token in emitted.tokens]


def test_where_no_token_is_sure_enough_the_text_is_the_target_s_and_no_layer_runs_twice():
    engine = EveryDrafter(every_drafter(200))
    assert text(LeavingTarget(engine, rule(1.0)), PROMPT) == plain(PROMPT, 30)
    assert engine.calls.count("exit_draft") == engine.calls.count("exit_verify_1") == 30
    assert "decode" not in engine.calls[engine.calls.index("exit_draft") :]


def test_where_all_are_sure_the_other_layers_never_run():
    engine = EveryDrafter(every_drafter(200))
    target, wanted = LeavingTarget(engine, rule(0.0)), list(PROMPT)
    for _ in range(30):
        wanted.append(engine._right_or_wrong(tuple(wanted)))
    assert text(target, PROMPT) == wanted[3:] != plain(PROMPT, 30)
    assert (target.left, target.asked) == (30, 30)
    assert not any(call.startswith("exit_verify") for call in engine.calls)


def test_a_token_that_stays_sees_those_that_left_before():
    """The engine raises where the layers that they skipped were given another state, or in another place."""
    engine = skipping()
    target, wanted = LeavingTarget(engine, rule(0.5, "classifier")), list(PROMPT)
    for _ in range(60):
        tokens = tuple(wanted)
        wanted.append(engine._right_or_wrong(tokens) if engine.is_sure(tokens) else next_token(tokens))
    assert text(target, PROMPT, 60) == wanted[3:] != plain(PROMPT, 60)
    assert 10 < target.left < 50
    assert engine.calls.count("exit_fill") == target.left
    assert engine.calls.count("exit_verify_1") == 60 - target.left


def test_a_classifier_saves_the_exit_s_head_where_a_token_stays():
    for measure, asked in (("classifier", 0), ("gap", 30)):
        engine = skipping()
        text(LeavingTarget(engine, rule(1.0, measure)), PROMPT)
        assert engine.calls.count("exit_head") == asked


def test_a_measure_that_the_exit_lacks_is_refused():
    with pytest.raises(PocketdraftError, match="confidence is classifier, the bundle's exit has gap; take"):
        LeavingTarget(EveryDrafter(every_drafter(200)), rule(0.5, "classifier"))
    with pytest.raises(PocketdraftError, match="confidence is cosine, the bundle's exit has gap and classifier; take"):
        LeavingTarget(skipping(), rule(0.5, "cosine"))


def test_a_bundle_that_cannot_fill_in_k_v_is_refused():
    with pytest.raises(PocketdraftError, match=r"after layer 1, the first 3 keep K/V, .* export it again"):
        LeavingTarget(skipping(fills=False), rule(0.5))


def test_leaving_and_drafting_do_not_go_together():
    with pytest.raises(PocketdraftError, match="early or be drafted, not both"):
        text(LeavingTarget(EveryDrafter(every_drafter(200)), rule(1.0)), PROMPT, drafter="mtp")


def test_a_bundle_without_an_exit_is_refused():
    with pytest.raises(PocketdraftError, match="holds no early_exit drafter"):
        LeavingTarget(EveryDrafter(scripted_manifest()), rule(0.5))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return eager_pair(Checkpoint.open(TARGET_DIR), Checkpoint.open(EXITS_DIR), context=256)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = Tokenizer(TARGET_DIR / "tokenizer.json", Checkpoint.open(TARGET_DIR).tokens().bos)
    return [tokenizer.encode(prompt.text) for prompt in read_prompts(PROMPTS_FILE, 3)]


def test_what_left_early_leaves_the_k_v_of_a_whole_pass(engine, prompts):
    """The exit lies where K/V sharing begins, so no layer that is skipped owns any."""
    target, whole = LeavingTarget(engine, rule(0.5)), Target(engine)
    session = open_session(engine, "none", 0, target)
    list(session.generate(prompts[0], 30))
    assert 0 < target.left < target.asked
    clean = whole.new_cache()
    whole.prefill(clean, session.context.tokens[: session.cache.length])
    ours, theirs = engine.read_kv(session.cache.handle), engine.read_kv(clean.handle)
    for name, array in theirs.items():
        kept = slice(session.cache.length)
        axis = (slice(None), slice(None), kept) if "kv_cache_k" in name else (..., kept)
        np.testing.assert_allclose(ours[name][axis], array[axis], atol=1e-4)


def test_a_loose_bound_lets_tokens_leave_and_a_strict_one_none(engine, prompts):
    loose, share = certify(engine, prompts, 24, delta=0.9, epsilon=0.05)
    assert 0 < share < 1
    assert loose.rule.threshold < 0.98
    assert loose.risk <= 0.9
    strict, none = certify(engine, prompts, 24, delta=0.001, epsilon=0.05)
    assert strict.rule.never
    assert none == 0.0


def test_what_was_certified_is_read_back_from_the_manifest(engine, prompts, tmp_path):
    found, _ = certify(engine, prompts[:6], 12, delta=0.9, epsilon=0.05)
    manifest = scripted_manifest()
    files = {"tokenizer.json": manifest.files["model.litertlm"], **manifest.files}
    (tmp_path / MANIFEST_NAME).write_text(manifest.model_copy(update={"files": files}).dump())
    write_calm(tmp_path, found)
    assert read(tmp_path).calm == found
    said = json.loads((tmp_path / MANIFEST_NAME).read_text())["calm"]
    assert said == json.loads(json.dumps(asdict(found)))
    assert {"delta", "epsilon", "texts_sha256", "risk"} <= said.keys()
    assert write_calm(tmp_path, None).calm is None
    with pytest.raises(ValueError, match="threshold"):
        Manifest.model_validate(json.loads(manifest.dump()) | {"calm": {"rule": {"measure": "gap"}}})
