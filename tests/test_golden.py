"""The recorded rounds are this runtime's: a change of the loop shows here, and in whoever replays them."""

from __future__ import annotations

import json

import pytest
from golden import record


@pytest.mark.parametrize("name", ["sessions", "verdicts", "trees", "texts"])
def test_the_recorded_rounds_are_those_of_this_runtime(name):
    """After a change that is meant, `python -m golden.record` in `tests/` writes them anew."""
    made = json.loads(json.dumps(getattr(record, name)()))
    assert made == json.loads((record.FOLDER / f"{name}.json").read_text())


def test_the_recorded_sessions_reach_what_a_port_could_get_wrong():
    sessions = {one["name"]: one for one in record.sessions()}
    finishes = {emitted["finish"] for one in sessions.values() for emitted in one["rounds"]}
    assert finishes == {None, "stop", "budget", "context"}
    assert sessions["stop token inside an accepted block"]["stats"]["cut"]
    assert any(
        one["stats"]["accepted"] and one["stats"]["corrected"]
        for one in sessions.values()
        if one["rule"] == "rejection"
    )
    for drafter in ("dflash", "early_exit", "mtp_heads", "mtp_heads, 3 of them", "draft_model"):
        one = sessions[drafter]
        assert one["stats"]["accepted"] > 0 < one["stats"]["cut"]
        assert {emitted["finish"] for emitted in one["rounds"]} == {None, "stop", "budget", "context"}
    for drafter in ("dflash_tree", "mtp_tree"):
        moves = [call["compact"] for call in sessions[f"{drafter}, six nodes"]["calls"] if "compact" in call]
        assert len(moves) > 1
        assert not any("compact" in call for call in sessions[f"{drafter}, no trees"]["calls"])
    assert any(len(call.get("compact", ())) > 1 for call in sessions["dflash_tree, six nodes"]["calls"])
    for late in ("dflash that comes late", "mtp_heads that come late"):
        assert any(call["inputs"].get("mask_from") == 3 for call in sessions[late]["calls"])
