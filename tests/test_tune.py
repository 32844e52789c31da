"""What `tune` chooses, by surveys of the scripted engine and devices on paper."""

from __future__ import annotations

import pytest
from scripted import ScriptedEngine, scripted_manifest

from pocketdraft.runtime.cost import RoundCost
from pocketdraft.runtime.draft_length import Scheduled, drafts_as_tuned
from pocketdraft.runtime.manifest import MANIFEST_NAME, read
from pocketdraft.runtime.options import start
from pocketdraft.runtime.survey import survey
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.tune import choose, write_choice

FAST = RoundCost(((1, 1.0), (2, 1.02), (3, 1.05), (5, 1.1)), 0.02)
SLOW_VERIFY = RoundCost(tuple((width, float(width)) for width in range(1, 6)), 0.02)
DEAR_WIDE = RoundCost(((1, 1.0), (2, 1.1), (3, 1.2), (5, 9.0)), 0.02)


@pytest.fixture(scope="module")
def texts():
    """Half of the drafts are right in one domain, all of them in the other; prompt lookup finds next to nothing."""
    found = {drafter: {} for drafter in ("mtp", "prompt_lookup")}
    for domain, wrong in (("hard", True), ("easy", False)):
        target = Target(ScriptedEngine(scripted_manifest(400), wrong_half=wrong))
        for drafter in found:
            found[drafter][domain] = [survey(target, drafter, 4, [start, 1, 2], 200) for start in range(3)]
    return found


def both(cost: RoundCost) -> dict[str, RoundCost]:
    return {"mtp": cost, "prompt_lookup": cost}


def test_where_a_verify_costs_nothing_more_it_drafts_as_long_as_it_can(texts):
    choice = choose(texts, both(FAST))
    assert (choice.chosen.drafter, choice.chosen.drafts) == ("mtp", 4)
    assert choice.chosen.gain > 2
    assert choice.chosen.gains["easy"] > choice.chosen.gains["hard"] > 1
    assert choice.loses == {}


def test_a_device_whose_verify_takes_as_long_as_decoding_each_token_is_off_and_says_why(texts):
    choice = choose(texts, both(SLOW_VERIFY))
    assert (choice.chosen.drafter, choice.chosen.drafts, choice.chosen.gain) == ("none", 0, 1.0)
    assert "times as fast as plain decoding" in choice.reason
    assert "verifying 2 tokens alone takes 2.00" in choice.reason
    assert max(candidate.gain for candidate in choice.candidates) < 1.02


def test_a_step_in_the_verify_is_not_taken_where_it_does_not_pay(texts):
    assert choose(texts, both(DEAR_WIDE)).chosen.drafts == 2


def test_it_tells_where_it_would_lose(texts):
    uneven = RoundCost(((1, 1.0), (5, 1.6)), 0.25)
    choice = choose(texts, both(uneven))
    assert choice.chosen.gain > 1
    assert list(choice.loses) == ["hard"]


def test_the_choice_is_written_into_the_manifest_and_nothing_else_changes(tmp_path, texts):
    manifest = scripted_manifest()
    files = dict(manifest.files) | {"tokenizer.json": manifest.files["model.litertlm"]}
    before = manifest.model_copy(update={"files": files})
    (tmp_path / MANIFEST_NAME).write_text(before.dump())
    tuned = choose(texts, both(FAST)).tuned("phone", "abc")
    write_choice(tmp_path, tuned)
    after = read(tmp_path)
    assert after.tuned == tuned
    assert after.model_copy(update={"tuned": None}) == before
    write_choice(tmp_path, None)
    assert read(tmp_path) == before


def test_a_bundle_starts_as_tuned_unless_it_is_told_otherwise(texts):
    tuned = choose(texts, both(FAST)).tuned("phone", "")
    drafts = drafts_as_tuned(tuned)
    bundle = scripted_manifest().model_copy(update={"tuned": tuned})
    assert start(bundle, None, None) == ("mtp", drafts)
    assert drafts == 4 or isinstance(drafts, Scheduled)
    assert start(bundle, None, "2") == ("mtp", 2)
    assert start(bundle, "none", None) == ("none", 4)
    assert start(None, None, None) == ("mtp", 4)
    off = choose(texts, both(SLOW_VERIFY)).tuned("phone", "")
    assert start(bundle.model_copy(update={"tuned": off}), None, None) == ("none", 0)
