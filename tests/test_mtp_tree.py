"""The MTP drafter's trees. That they give plain decoding's text is tested beside the other drafters."""

from __future__ import annotations

import pytest
from scripted import VOCABULARY, ScriptedEngine, plain, scripted_manifest

from pocketdraft.runtime.draft_length import Scheduled
from pocketdraft.runtime.schedule import Schedule
from pocketdraft.runtime.session import Session, open_session

PROMPT = [1, 2, 3]


def emitted(session: Session, budget: int) -> list[int]:
    return [token for round_ in session.generate(PROMPT, budget) for token in round_.tokens]


class SecondChoice(ScriptedEngine):
    """A drafter that is never sure, and whose second choice is always the right one."""

    def _draft(self, inputs, cache):
        outputs = super()._draft(inputs, cache)
        right = int(outputs["logits"][0, 0].argmax())
        outputs["logits"][0, 0, (right + 1) % VOCABULARY] = 1.5
        return outputs


# The chain stops after one draft, by its confidence; the graph has three rows more.
ONE = Scheduled(Schedule((0.5,) * 11, (1.0, 0.9, 0.9, 0.9)))


@pytest.mark.parametrize("drafts", [4, ONE])
def test_the_second_choice_is_a_sibling_where_it_is_the_right_one(drafts):
    engine = SecondChoice(scripted_manifest(200, verify=(5,)), wrong_half=False)
    session = open_session(engine, "mtp_tree", drafts)
    assert emitted(session, 100) == plain(PROMPT, 100)
    stats = session.stats
    stats.check()
    assert stats.accepted_per_round > 0.9
    assert stats.proposed / stats.rounds > 2
    chain = open_session(SecondChoice(scripted_manifest(200), wrong_half=False), "mtp", 4)
    emitted(chain, 100)
    assert chain.stats.accepted == 0
    assert engine.calls.count("mtp_drafter") < 0.6 * chain.target.engine.calls.count("mtp_drafter")
    if drafts is ONE:
        assert {accepted for _, accepted in stats.judged} == {False}, "a sibling counts as a draft of the chain"


def test_a_sure_drafter_s_tree_is_the_chain():
    class Sure(ScriptedEngine):
        def _draft(self, inputs, cache):
            outputs = super()._draft(inputs, cache)
            return outputs | {"logits": outputs["logits"] * 50}

    session = open_session(Sure(scripted_manifest(), wrong_half=False), "mtp_tree", 4)
    emitted(session, 40)
    assert session.stats.accepted_per_round == pytest.approx(4, abs=0.2)
    assert not session.stats.trees


def test_an_engine_that_takes_no_trees_gets_the_chain_of_mtp():
    sessions = [
        open_session(ScriptedEngine(scripted_manifest(), takes_trees=False), name, 4) for name in ("mtp", "mtp_tree")
    ]
    assert [emitted(session, 30) for session in sessions] == [plain(PROMPT, 30)] * 2
    assert sessions[0].target.engine.calls == sessions[1].target.engine.calls
