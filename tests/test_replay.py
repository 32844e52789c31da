"""The parity ladder over every kind of drafter: which graphs run, and that a fault shows in the one that made it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scripted_drafters import EveryDrafter, every_drafter
from test_leaving import twice

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.reference import TransformersEngine
from pocketdraft.export.rungs import eager_pair
from pocketdraft.export.tiny import EMBEDDED, PROMPTS_FILE, TARGET_DIR
from pocketdraft.runtime import validate
from pocketdraft.runtime.drafters import runnable
from pocketdraft.runtime.engine import Arrays, Delegating, Engine
from pocketdraft.runtime.ladder import CLIMBED, Outputs, climb, compare
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.replay import Calls, note, replay
from pocketdraft.runtime.text import Tokenizer

TEXT = read_prompts(PROMPTS_FILE, 1)[0].text


class Off(Delegating):
    """One output of the graphs of a role is a little too large."""

    def __init__(self, engine: Engine, role: str, output: str) -> None:
        super().__init__(engine)
        self.wrong, self.output = {graph.name for graph in engine.manifest.graphs_of(role)}, output

    def run(self, graph: str, inputs: Arrays, cache: Any = None) -> dict[str, Any]:
        outputs = super().run(graph, inputs, cache)
        return outputs | {self.output: outputs[self.output] + 0.01} if graph in self.wrong else outputs


class Shifted(Off):
    """The graphs of a role write their K/V a row too late."""

    def run(self, graph: str, inputs: Arrays, cache: Any = None) -> dict[str, Any]:
        if graph in self.wrong:
            inputs = {**inputs, "input_pos": inputs["input_pos"] + np.int32(1)}
        return self.engine.run(graph, inputs, cache)


class Stored(Delegating):
    """What lies in a layer's K/V is not what the graphs have written, as far as no call has looked yet."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(engine)
        self.name = name

    def read_kv(self, cache: Any) -> dict[str, Any]:
        kv = super().read_kv(cache)
        return kv | {self.name: kv[self.name] + 0.01}


@pytest.fixture(scope="module")
def eager() -> Engine:
    files = [Checkpoint.open(folder) for folder in (TARGET_DIR, *EMBEDDED.values())]
    return eager_pair(*files, context=128, drafts=4, early_exit=(3, 5))


@pytest.fixture(scope="module")
def transformers(eager) -> Engine:
    return TransformersEngine(eager.manifest, Checkpoint.open(TARGET_DIR), Checkpoint.open(EMBEDDED["mtp"]))


@pytest.fixture(scope="module")
def tokens(eager) -> list[int]:
    text = Tokenizer(TARGET_DIR / "tokenizer.json", eager.manifest.tokens.bos).encode(TEXT)
    return (text * 70)[:70]


@pytest.fixture(scope="module")
def noted(eager, tokens) -> tuple[list[Calls], dict[str, Outputs]]:
    sequences = note(eager, tokens)
    return sequences, replay(eager, sequences)


def failing(noted: tuple[list[Calls], dict[str, Outputs]], broken: Engine) -> set[str]:
    """Roles of the graphs that differ."""
    return set(parted(noted, broken))


def parted(noted: tuple[list[Calls], dict[str, Outputs]], broken: Engine) -> dict[str, str | None]:
    """Where the graphs that differ do so, by role."""
    sequences, wanted = noted
    rows = compare(wanted, replay(broken, sequences), dict.fromkeys(wanted, validate.FLOAT_LIMIT))
    roles = {graph.name: graph.role for graph in broken.manifest.graphs}
    return {roles[row.graph]: row.layer for row in rows if not row.passed}


@pytest.mark.parametrize(("heads", "wrong_half"), [(1, True), (3, True), (3, False)])
def test_every_width_of_every_drafter_s_graphs_is_run_again_as_it_was(heads, wrong_half):
    """The script raises where a graph is fed what belongs elsewhere, or reads K/V that is not there."""
    engine, again = (EveryDrafter(every_drafter(heads=heads), wrong_half=wrong_half) for _ in range(2))
    assert_all_run_again(engine, again)


def test_every_exit_s_graphs_are_run_again_as_they_were():
    assert_all_run_again(twice("further_fill"), twice("further_fill"))


def assert_all_run_again(engine: EveryDrafter, again: EveryDrafter) -> None:
    sequences = note(engine, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    found = replay(again, sequences)
    others = [graph for graph in engine.manifest.graphs if graph.role not in CLIMBED]
    assert {call.graph for calls in sequences for call in calls} >= {graph.name for graph in others}
    assert again.calls == engine.calls
    silent = ("dflash_context", "model_prefill", "exit_fill", "further_fill")  # but for K/V
    assert found.keys() == {graph.name for graph in others if graph.role not in silent}


def test_no_row_of_an_early_exit_s_verify_is_padding():
    """It would read K/V of the first layers that were never written: zeros, or what another sequence has left."""
    engine = EveryDrafter(every_drafter(verify=(5,)))
    calls = [call for calls in note(engine, list(range(1, 10))) for call in calls if "exit_verify" in call.graph]
    for call in calls:
        states = call.inputs["exit_states"][0, :, 0].tolist()
        assert len(set(states)) == len(states)
    assert {len(call.inputs["input_pos"]) for call in calls} == {1, 5}


def test_where_mtp_alone_drafts_there_is_nothing_to_note():
    manifest = every_drafter()
    mtp = type(manifest.drafters)(mtp=manifest.drafters.mtp)
    assert note(EveryDrafter(manifest.model_copy(update={"drafters": mtp})), [1, 2, 3]) == []


@pytest.mark.parametrize(
    ("role", "output"),
    [
        ("dflash_draft", "activations"),
        ("head", "logits"),
        ("exit_draft", "exit_states"),
        ("exit_head", "logits"),
        ("exit_verify", "logits"),
        ("further_exit", "exit_states"),
        ("further_head", "logits"),
        ("further_rest", "logits"),
        ("mtp_heads", "projected_activations"),
        ("model_embed", "embeddings"),
        ("model_decode", "logits"),
    ],
)
def test_an_output_that_is_off_shows_in_its_graph_alone(eager, noted, role, output):
    assert failing(noted, Off(eager, role, output)) == {role}


@pytest.mark.parametrize(
    ("role", "reader"), [("dflash_context", "dflash_draft"), ("model_prefill", "model_decode"), ("exit_draft", None)]
)
def test_k_v_in_the_wrong_place_shows_in_the_graph_that_wrote_it(eager, noted, role, reader):
    assert role in (found := failing(noted, Shifted(eager, role, "")))
    assert found <= ({role, reader} if reader else {role, "exit_verify", "further_exit", "further_rest"})


@pytest.mark.parametrize(
    ("kept", "role"),
    [
        ("dflash_kv_cache_k_0", "dflash_draft"),
        ("mtp_heads_kv_cache_v_0", "mtp_heads"),
        ("draft_model_kv_cache_k_0", "model_prefill"),
        ("kv_cache_v_0", "exit_draft"),
    ],
)
def test_k_v_that_only_later_calls_read_count_where_a_graph_s_other_outputs_are_right(eager, noted, kept, role):
    assert parted(noted, Stored(eager, kept))[role] == "layer 0"


@pytest.mark.parametrize(("top", "output"), [("transformers", "activations"), ("eager", "taps")])
def test_what_a_prefill_gives_drafters_is_compared_too(eager, tokens, request, top, output):
    """A text would not tell: it only gets slower."""
    wanted, feed = climb(eager.manifest, request.getfixturevalue(top), tokens, None)
    found, _ = climb(eager.manifest, Off(eager, "prefill", output), tokens, feed)
    rows = compare(wanted, found, dict.fromkeys(wanted, validate.FLOAT_LIMIT))
    assert [row.graph for row in rows if not row.passed] == ["prefill_64"]


def checked(engine: Engine, monkeypatch: pytest.MonkeyPatch, **above: Engine) -> validate.Validation:
    """Without LiteRT-LM, which has no file to open here."""
    monkeypatch.setattr(validate, "cross_check", lambda *_: validate.Check("LiteRT-LM", "skipped", ""))
    return validate.validate(TARGET_DIR, engine, [TEXT], 8, iter(above.items()), lambda _: None)


def test_a_bundle_of_all_kinds_has_each_graph_compared_and_each_drafter_held_to_the_law(
    eager, transformers, monkeypatch
):
    found = checked(eager, monkeypatch, transformers=transformers, step=eager)
    for rung, among in (("transformers -> step", CLIMBED), ("step -> graph", {g.role for g in eager.manifest.graphs})):
        names = {graph.name for graph in eager.manifest.graphs if graph.role in among}
        assert {row.graph for row in found.ladder[rung]} == names
    outcomes = {check.name: check.outcome for check in found.checks}
    assert "parity ladder" not in outcomes
    for drafter in runnable(eager.manifest.drafters):
        assert outcomes[f"{drafter} vs plain"] == "pass"
    assert found.passed


def test_a_drafter_s_graph_that_is_off_makes_the_bundle_invalid_though_its_text_is_right(eager, monkeypatch):
    found = checked(Off(eager, "mtp_heads", "projected_activations"), monkeypatch, step=eager)
    assert {row.graph for row in found.ladder["step -> graph"] if not row.passed} == {
        graph.name for graph in eager.manifest.graphs_of("mtp_heads")
    }
    assert {check.outcome for check in found.checks if "vs plain" in check.name} == {"pass"}
    assert not found.passed


def test_a_graph_that_no_round_runs_is_said_not_to_be_compared(eager, monkeypatch):
    """Of 65 tokens at once 64 go through one graph and the last through another."""
    one = eager.manifest.graphs_of("dflash_context")[0].model_copy(update={"name": "dflash_context_65", "width": 65})
    more = Delegating(eager)
    more.manifest = eager.manifest.model_copy(update={"graphs": (*eager.manifest.graphs, one)})
    found = checked(more, monkeypatch, step=more)
    (check,) = (check for check in found.checks if check.name == "parity ladder")
    assert (check.outcome, check.detail) == ("info", "no call runs dflash_context_65: not compared")
