"""Which drafter precision is best, by what it is worth."""

from __future__ import annotations

import pytest
from scripted import scripted_manifest

from pocketdraft.runtime.manifest import Part
from pocketdraft.runtime.profile import DeviceInfo
from pocketdraft.runtime.recipes import best, row
from pocketdraft.runtime.results import DrafterRecipe, Precisions, read_results, write_results
from pocketdraft.runtime.sections import report
from pocketdraft.runtime.tune import OFF, Candidate, Choice


def drafting(gain: float, tokens: float = 2.0, drafter: str = "mtp") -> Candidate:
    return Candidate(drafter, 2, None, gain, {"code": gain}, tokens, tokens / gain)


def rated(recipe: str, choice: Choice, size: int = 10) -> DrafterRecipe:
    manifest = scripted_manifest()
    parts = dict(manifest.parts) | {"drafter": Part(file="model.litertlm", offset=0, size=size)}
    return row(recipe, manifest.model_copy(update={"parts": parts}), choice, plain_s=0.01)


def test_the_fastest_wins_though_fewer_of_its_drafts_are_accepted():
    exact = Choice(drafting(1.3, 2.9), "", (drafting(1.3, 2.9),))
    coarse = Choice(drafting(1.5, 2.6), "", (drafting(1.5, 2.6),))
    rows = [rated("f32", exact), rated("w4", coarse)]
    assert best(rows).recipe == "w4"
    assert best(rows).tokens_per_s == pytest.approx(150)


def test_where_drafting_does_not_pay_the_recipes_are_still_told_apart():
    rows = [rated(name, Choice(OFF, "", (drafting(gain),))) for name, gain in (("f32", 0.6), ("w8", 0.8), ("w4", 0.7))]
    assert max(one.gain for one in rows) < 1
    assert best(rows).recipe == "w8"


def test_of_equally_fast_ones_the_smaller_wins():
    same = Choice(drafting(1.5), "", (drafting(1.5),))
    assert best([rated("f32", same, 40), rated("w8", same, 10)]).recipe == "w8"


def test_prompt_lookup_tells_nothing_of_a_drafter_s_precision():
    choice = Choice(OFF, "", (drafting(0.9, drafter="prompt_lookup"), drafting(0.5)))
    assert rated("w8", choice).tokens_per_s == pytest.approx(50)


def test_the_finding_is_written_and_stands_in_the_report(tmp_path):
    rows = (rated("f32", Choice(OFF, "", (drafting(0.6),))), rated("w4", Choice(OFF, "", (drafting(0.7),))))
    device = DeviceInfo(name="phone")
    found = Precisions(date="", bundle="b", backend="litert", device=device, best=best(rows).recipe, recipes=rows)
    write_results(found, tmp_path / "found.json")
    assert read_results(tmp_path / "found.json") == found
    page = report([], [], [], [found])
    page.write(tmp_path / "report.html")
    assert "By tokens/s w4 is best" in (tmp_path / "report.html").read_text()
    assert "| w4 " in (tmp_path / "report.md").read_text()
