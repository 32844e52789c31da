"""Traps of the loop: each is put back, and the script must notice."""

from __future__ import annotations

import pytest
from scripted import ScriptedEngine, plain, scripted_manifest

from pocketdraft.runtime.accept import Verdict
from pocketdraft.runtime.cache import Cache
from pocketdraft.runtime.context import Context
from pocketdraft.runtime.draft_length import Fixed
from pocketdraft.runtime.drafters.mtp import MTPDrafter
from pocketdraft.runtime.proposal import Proposal
from pocketdraft.runtime.session import Session
from pocketdraft.runtime.target import Target, Verified

PROMPT = [1, 2, 3]


class AdvancingDrafter(MTPDrafter):
    """Moves its position on with each draft, as an ordinary draft model would."""

    def propose(self, context: Context, count: int) -> Proposal:
        run, step = self._target.engine.run, iter(range(count + 1))

        def advancing(graph, inputs, cache=None):
            if graph == self._graph:
                inputs = inputs | {"input_pos": inputs["input_pos"] + next(step)}
            return run(graph, inputs, cache)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._target.engine, "run", advancing)
            return super().propose(context, count)


class FirstRowDrafter(MTPDrafter):
    """Takes the hidden state of the pending token's row, whatever was accepted after it."""

    def observe(self, verdict: Verdict, verified: Verified) -> None:
        self._hidden = verified.hidden[0]


def drafted_by(drafter_class: type[MTPDrafter]) -> list[int]:
    target = Target(ScriptedEngine(scripted_manifest()))
    cache = Cache(target.engine.new_cache(), target.context_length)
    session = Session(target, cache, drafter_class(target, cache), Fixed(4))
    return [token for emitted in session.generate(PROMPT, 20) for token in emitted.tokens]


def test_the_honest_drafter_passes_where_the_traps_below_do_not():
    assert drafted_by(MTPDrafter) == plain(PROMPT, 20)


def test_trap_position_advances_within_a_draft():
    with pytest.raises(AssertionError, match="position"):
        drafted_by(AdvancingDrafter)


def test_trap_hidden_state_of_the_wrong_row():
    with pytest.raises(AssertionError, match="another context"):
        drafted_by(FirstRowDrafter)


@pytest.mark.parametrize("off", [-1, 1])
def test_trap_committed_length_one_off(monkeypatch, off):
    monkeypatch.setattr(Target, "keep", lambda self, cache, rows: cache.advance(len(rows) + off))
    with pytest.raises((AssertionError, IndexError)):
        assert drafted_by(MTPDrafter) == plain(PROMPT, 20)


def test_trap_mask_shows_a_slot_too_many(monkeypatch):
    def generous(self, start, count):
        return honest(self, start, count) | {"mask": honest(self, start + 1, count)["mask"]}

    honest = Target.positions
    monkeypatch.setattr(Target, "positions", generous)
    with pytest.raises((AssertionError, OverflowError)):
        assert drafted_by(MTPDrafter) == plain(PROMPT, 20)
