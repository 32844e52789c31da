"""Lookup or MTP, round by round. That either gives plain decoding's text is tested beside the other drafters."""

from __future__ import annotations

import pytest
import scripted
from scripted import ScriptedEngine, plain, scripted_manifest
from scripted_drafters import EveryDrafter, every_drafter

from pocketdraft.runtime.cost import Times
from pocketdraft.runtime.drafters import runnable
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.sampler import Sampler
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.session import Session, open_session

BUDGET = 120


@pytest.fixture
def supposed_times(monkeypatch):
    """A script's graphs take what Python takes: the supposed cost of a draft stands for what a device measures."""
    monkeypatch.setattr(Times, "cost", lambda times: None)


def run(monkeypatch, drafter: str, period: int | None, mtp_right: bool) -> tuple[list[int], Session, ScriptedEngine]:
    """A target that says the same `period` tokens again and again, or nothing twice; a drafter right or wrong."""
    told = scripted.next_token

    def next_token(tokens, salt="target"):
        return len(tokens) % period if period else told(tokens, salt)

    monkeypatch.setattr(scripted, "next_token", next_token)

    class Engine(ScriptedEngine):
        def _draft(self, inputs, cache):
            outputs = super()._draft(inputs, cache)
            if not mtp_right:
                outputs["logits"] = outputs["logits"][..., ::-1].copy()
            return outputs

    engine = Engine(scripted_manifest(200), wrong_half=False)
    session = open_session(engine, drafter, 4)
    tokens = [token for emitted in session.generate([1, 2, 3], BUDGET) for token in emitted.tokens]
    session.stats.check()
    return tokens, session, engine


def test_text_that_repeats_is_looked_up_where_mtp_is_wrong(monkeypatch, supposed_times):
    wanted, _, _ = run(monkeypatch, "none", 7, mtp_right=False)
    tokens, session, engine = run(monkeypatch, "hybrid", 7, mtp_right=False)
    assert tokens == wanted
    assert session.stats.accepted_per_round > 2.5
    _, alone, every = run(monkeypatch, "mtp", 7, mtp_right=False)
    assert alone.stats.accepted < 0.2 * session.stats.accepted
    assert engine.calls.count("mtp_drafter") < 0.2 * every.calls.count("mtp_drafter")


def test_text_that_does_not_repeat_is_left_to_mtp(monkeypatch, supposed_times):
    wanted, _, _ = run(monkeypatch, "none", None, mtp_right=True)
    tokens, session, _ = run(monkeypatch, "hybrid", None, mtp_right=True)
    assert tokens == wanted
    assert session.stats.accepted_per_round > 3
    _, lookup, _ = run(monkeypatch, "prompt_lookup", None, mtp_right=True)
    assert lookup.stats.accepted_per_round < 0.5


@pytest.mark.parametrize("heads", [1, 3])
def test_native_heads_draft_where_there_is_no_mtp_drafter(heads, supposed_times):
    whole = every_drafter(heads=heads)
    manifest = whole.model_copy(update={"drafters": whole.drafters.model_copy(update={"mtp": None})})
    assert "hybrid" in runnable(manifest.drafters)
    engine = EveryDrafter(manifest, wrong_half=False)
    session = open_session(engine, "hybrid", 3)
    prompt = [1, 2, 3, 1, 2, 3, 1, 2]
    tokens = [token for emitted in session.generate(prompt, 40) for token in emitted.tokens]
    assert tokens == plain(prompt, 40)
    assert session.stats.accepted > 10
    assert any(call.startswith("mtp_heads") for call in engine.calls)
    assert "mtp_drafter" not in engine.calls


def test_rejection_is_refused_as_its_text_would_depend_on_times():
    sampler = Sampler(Sampling(temperature=1.0), "rejection")
    with pytest.raises(PocketdraftError, match="hybrid chooses by measured times"):
        open_session(ScriptedEngine(scripted_manifest()), "hybrid", 4, sampler=sampler)


def test_what_mtp_s_drafts_take_is_measured_whatever_their_number(monkeypatch):
    _, session, _ = run(monkeypatch, "hybrid", None, mtp_right=True)
    cost = session.target.experience.times.cost()
    assert cost is not None
    assert cost.draft_s > 0
