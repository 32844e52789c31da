"""Tokens that leave the target early: what runs, what is kept, and what is written of it."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from scripted import next_token, plain, scripted_manifest
from scripted_drafters import EveryDrafter, every_drafter
from typer.testing import CliRunner

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.rungs import eager_pair
from pocketdraft.export.tiny import EXITS_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.runtime.calm import ExitRule, Measure
from pocketdraft.runtime.cli import app
from pocketdraft.runtime.drafter_specs import EarlyExitSpec
from pocketdraft.runtime.engine import Engine
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.graphs import DrafterRole, GraphSpec, TensorSpec
from pocketdraft.runtime.leaving import LeavingTarget, certify, write_calm
from pocketdraft.runtime.manifest import MANIFEST_NAME, Manifest, read
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer

PROMPT = [1, 2, 3]


def rule(threshold: float, measure: Measure = "gap") -> ExitRule:
    return ExitRule(measure, threshold, 40)


def skipping(*roles: DrafterRole, further: tuple[int, ...] = ()) -> EveryDrafter:
    """The exit lies after the first of three layers that keep K/V, and has a classifier. There are graphs of `roles`
    besides the drafter's."""
    manifest = every_drafter(200)
    score = TensorSpec(name="score", dtype="float32", shape=(1, 1))
    graphs = [
        graph.model_copy(update={"outputs": (score,)}) if graph.role == "exit_draft" else graph
        for graph in manifest.graphs
    ]
    if further:
        graphs = [graph for graph in graphs if graph.name != "exit_verify_1"]
    graphs += [GraphSpec(name=role, role=role, part="target", width=1, inputs=(), outputs=()) for role in roles]
    kv = tuple(manifest.kv[0].model_copy(update={"layer": layer}) for layer in range(3))
    drafters = manifest.drafters.model_copy(update={"early_exit": EarlyExitSpec(layers=1, further=further)})
    return EveryDrafter(manifest.model_copy(update={"graphs": tuple(graphs), "kv": kv, "drafters": drafters}))


def twice(*roles: DrafterRole) -> EveryDrafter:
    """A token may leave after the second of the three layers as well."""
    return skipping("exit_fill", "further_exit", "further_head", "further_rest", *roles, further=(2,))


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
    assert (target.left, target.asked) == ([30], 30)
    assert not any(call.startswith("exit_verify") for call in engine.calls)


def test_a_token_that_stays_sees_those_that_left_before():
    """The engine raises where the layers that they skipped were given another state, or in another place."""
    engine = skipping("exit_fill")
    target, wanted = LeavingTarget(engine, rule(0.5, "classifier")), list(PROMPT)
    for _ in range(60):
        tokens = tuple(wanted)
        wanted.append(engine._right_or_wrong(tokens) if engine.is_sure(tokens) else next_token(tokens))
    assert text(target, PROMPT, 60) == wanted[3:] != plain(PROMPT, 60)
    (left,) = target.left
    assert 10 < left < 50
    assert engine.calls.count("exit_fill") == left
    assert engine.calls.count("exit_verify_1") == 60 - left


def test_exit_by_exit_a_token_leaves_at_the_first_that_is_sure_and_no_layer_runs_twice():
    """The engine raises where a graph is given another exit's state, or K/V of layers before it are not there."""
    engine, left = twice("further_fill"), [0, 0]
    target, wanted = LeavingTarget(engine, rule(0.5, "classifier")), list(PROMPT)
    for _ in range(60):
        tokens = tuple(wanted)
        sure = next((number for number in (0, 1) if engine.is_sure(tokens, number)), None)
        if sure is not None:
            left[sure] += 1
        says = {0: engine._right_or_wrong, 1: engine.at_second, None: next_token}[sure]
        wanted.append(says(tokens))
    assert text(target, PROMPT, 60) == wanted[3:]
    assert target.left == left
    assert min(left) > 10
    assert target.shares == {1: left[0] / 60, 2: left[1] / 60}
    calls = {name: engine.calls.count(name) for name in engine.calls if name.startswith(("exit_", "further_"))}
    assert calls == {
        "exit_draft": 60,
        "exit_head": left[0],
        "exit_fill": left[0],
        "further_exit": 60 - left[0],
        "further_head": left[1],
        "further_fill": left[1],
        "further_rest": 60 - sum(left),
    }
    assert "decode" not in engine.calls[engine.calls.index("exit_draft") :]


def test_an_exit_that_is_passed_by_is_not_asked():
    engine = twice("further_fill")
    target = LeavingTarget(engine, rule(0.0), passed=1)
    text(target, PROMPT)
    assert target.left == [0, 30]
    assert not {"exit_head", "exit_fill", "further_rest"} & set(engine.calls)


def test_a_classifier_saves_the_exit_s_head_where_a_token_stays():
    for measure, asked in (("classifier", 0), ("gap", 30)):
        engine = skipping("exit_fill")
        text(LeavingTarget(engine, rule(1.0, measure)), PROMPT)
        assert engine.calls.count("exit_head") == asked


def test_a_measure_that_the_exit_lacks_is_refused():
    with pytest.raises(PocketdraftError, match="confidence is classifier, the bundle's exit has gap; take"):
        LeavingTarget(EveryDrafter(every_drafter(200)), rule(0.5, "classifier"))
    with pytest.raises(PocketdraftError, match="confidence is cosine, the bundle's exit has gap and classifier; take"):
        LeavingTarget(skipping("exit_fill"), rule(0.5, "cosine"))


def test_a_bundle_that_cannot_fill_in_k_v_is_refused():
    with pytest.raises(PocketdraftError, match=r"after layer 1, the first 3 keep K/V, .* export it again"):
        LeavingTarget(skipping(), rule(0.5))
    with pytest.raises(PocketdraftError, match=r"after layer 2, the first 3 keep K/V, .* export it again"):
        LeavingTarget(twice(), rule(0.5))


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
    assert 0 < target.left[0] < target.asked
    clean = whole.new_cache()
    whole.prefill(clean, session.context.tokens[: session.cache.length])
    ours, theirs = engine.read_kv(session.cache.handle), engine.read_kv(clean.handle)
    for name, array in theirs.items():
        kept = slice(session.cache.length)
        axis = (slice(None), slice(None), kept) if "kv_cache_k" in name else (..., kept)
        np.testing.assert_allclose(ours[name][axis], array[axis], atol=1e-4)


def test_a_loose_bound_lets_tokens_leave_and_a_strict_one_none(engine, prompts):
    loose, shares = certify(engine, prompts, 24, delta=0.9, epsilon=0.05)
    assert shares.keys() == {3}
    assert 0 < shares[3] < 1
    assert loose.rule.threshold < 0.98
    assert loose.risk <= 0.9
    strict, none = certify(engine, prompts, 24, delta=0.001, epsilon=0.05)
    assert strict.rule.never
    assert none == {3: 0.0}


def test_what_is_certified_of_several_exits_is_said_exit_by_exit(prompts):
    several = eager_pair(Checkpoint.open(TARGET_DIR), Checkpoint.open(EXITS_DIR), context=256, early_exit=(3, 5))
    found, shares = certify(several, prompts, 24, delta=0.9, epsilon=0.05)
    assert shares.keys() == {3, 5}
    assert min(shares.values()) > 0.05
    target = LeavingTarget(several, found.rule)
    for prompt in prompts:
        text(target, prompt, 24)
    assert target.shares == shares


@pytest.mark.slow
def test_references_bound_how_much_farther_from_them_a_text_gets(engine, prompts):
    full = [text(Target(engine), prompt, 24) for prompt in prompts]
    textual, _ = certify(engine, prompts, 24, delta=0.9, epsilon=0.05)
    longer = [[*one, *one] for one in full]  # what no text of so many tokens can say is not held against it
    risk, _ = certify(engine, prompts, 24, delta=0.9, epsilon=0.05, references=longer)
    assert (risk.rule, risk.risk, risk.consistency) == (textual.rule, textual.risk, "risk")
    assert risk.texts_sha256 != textual.texts_sha256
    assert "(excess risk <= 0.9 with" in risk.sentence
    others, _ = certify(engine, prompts, 24, delta=0.9, epsilon=0.05, references=[[5]] * len(prompts))
    assert others.risk == 0.0  # neither text has anything of them
    assert others.rule.threshold <= textual.rule.threshold


def test_excess_risk_without_references_is_refused_before_the_bundle_is_opened(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"text": "a", "reference": "b"}\n{"text": "c"}\n')
    done = CliRunner().invoke(app, ["calm", "no bundle", "--consistency", "risk", "--prompts", str(file)])
    assert str(done.exception).startswith("--consistency is risk, 1 of 2 prompts have no `reference`")


@pytest.mark.parametrize(
    ("cuts", "said"),
    [
        ("5,3", "--early-exit is 5,3; give rising numbers"),
        ("3,6", "--early-exit is 6, the target has 6 layers; give a number from 1 to 5"),
        ("1,3", "There is no exit after layer 1; exits were trained after 2, 3, 4, 5"),
        ("3,3", "--early-exit is '3,3'; give distinct positive numbers"),
        ("3,", "--early-exit is '3,'; give distinct positive numbers"),
        ("", "--early-exit is ''; give distinct positive numbers"),
    ],
)
def test_exits_that_cannot_be_are_refused_before_any_work(tmp_path, cuts, said):
    words = ["plan", "--target", TARGET_DIR, "--drafter", EXITS_DIR, "--early-exit", cuts, "--recipe", "f32"]
    assert said in str(CliRunner().invoke(app, list(map(str, words))).exception)


def test_one_exit_is_written_as_it_was_before_there_could_be_more():
    assert EarlyExitSpec(layers=3).model_dump() == {"layers": 3}
    more = EarlyExitSpec(layers=3, further=(4, 5))
    assert EarlyExitSpec.model_validate_json(more.model_dump_json()) == more


def test_a_bundle_that_lacks_the_graphs_of_an_exit_is_damaged(tmp_path):
    manifest = twice("further_fill").manifest
    files = {"tokenizer.json": manifest.files["model.litertlm"], **manifest.files}
    for lost in (None, "further_exit", "further_head", "further_rest"):
        graphs = tuple(graph for graph in manifest.graphs if graph.role != lost)
        (tmp_path / MANIFEST_NAME).write_text(manifest.model_copy(update={"files": files, "graphs": graphs}).dump())
        if lost is None:
            assert read(tmp_path).graphs == graphs
            continue
        with pytest.raises(PocketdraftError, match=f"has no {lost} graph"):
            read(tmp_path)


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
