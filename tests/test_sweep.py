"""Sweeps with a stand-in for the command: what is run, what is not run again, what a failure does to the rest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pocketdraft.runtime import sweep
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.sweep import Job, exports, points, read_sweep, run

PLAN = """
out: results
models:
  - name: tiny
  - {name: mine, target: t, drafter: d}
recipes: [mixed, w8]
drafters: [mtp, prompt_lookup]
lengths: [1, 4]
"""
# Writes the file after --out, unless it is told to fail or to die.
STAND_IN = """
import os, pathlib, sys
words = sys.argv[1:]
length = words[words.index("--lengths") + 1]
if length == "4" and "mtp" in words: sys.exit(print("pocketdraft: four is too many.", file=sys.stderr) or 2)
if length == "9": os.abort()
with open(LOG, "a") as log: log.write(" ".join(words) + chr(10))
pathlib.Path(words[words.index("--out") + 1]).write_text("{}")
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch):
    def write(text: str) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(text)
        return path

    code = STAND_IN.replace("LOG", repr(str(tmp_path / "log")))
    monkeypatch.setattr(sweep, "COMMAND", (sys.executable, "-c", code))
    return write


def ran(tmp_path: Path) -> int:
    log = tmp_path / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_every_combination_is_a_point_and_every_bundle_is_exported_once(plan, tmp_path):
    found = read_sweep(plan(PLAN))
    assert len(exports(found)) == 2 * 2
    jobs = points(found)
    assert len(jobs) == len({job.makes for job in jobs}) == 2 * 2 * 2 * 2
    (own, *_) = [job for job in exports(found) if "mine" in job.name]
    assert own.arguments[:5] == ("export", "--target", str(tmp_path / "t"), "--drafter", str(tmp_path / "d"))
    assert own.arguments[own.arguments.index("--drafts") + 1] == "1,4"


def test_a_failed_point_is_reported_and_the_rest_goes_on(plan, tmp_path):
    outcomes = list(run(points(read_sweep(plan(PLAN))), "local", 2))
    failed = [outcome for outcome in outcomes if outcome.error]
    assert {outcome.error for outcome in failed} == {"pocketdraft: four is too many."}
    assert all("mtp 4" in outcome.job.name for outcome in failed)
    assert (len(outcomes), len(failed), ran(tmp_path)) == (16, 4, 12)


def test_finished_points_are_never_run_again(plan, tmp_path):
    found = read_sweep(plan(PLAN))
    list(run(points(found), "local", 2))
    again = list(run(points(found), "local", 2))
    assert len(again) == 4, "only those that failed"
    assert ran(tmp_path) == 12
    list(run(points(read_sweep(plan(PLAN.replace("[1, 4]", "[1, 2, 4]")))), "local", 2))
    assert ran(tmp_path) > 12, "another set of lengths makes other bundles"


def test_other_settings_make_other_points(plan):
    short, long = (points(read_sweep(plan(PLAN + f"max_tokens: {n}\n"))) for n in (8, 96))
    assert not {job.makes for job in short} & {job.makes for job in long}


def test_a_command_that_dies_is_a_failure_with_its_status(plan):
    bundles = "out: r\nbundles: [b]\nlengths: [9, 1]\n"
    outcomes = {outcome.job.name: outcome.error for outcome in run(points(read_sweep(plan(bundles))), "local", 1)}
    assert outcomes["b mtp 1"] is None
    assert "status -6" in (outcomes["b mtp 9"] or "")


def test_a_bundle_that_is_there_is_not_exported_again(plan, tmp_path):
    found = read_sweep(plan(PLAN))
    first: Job = exports(found)[0]
    first.makes.parent.mkdir(parents=True)
    first.makes.write_text("{}")
    assert first.done
    assert first.folder == tmp_path / "results" / "bundles"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("out: r\nmodles: []\n", "at modles"),
        ("out: r\n", "neither models nor bundles"),
        ("out: r\nbundles: [a]\nmodels: [{name: x}]\n", "both models and bundles"),
        ("out: r\nbundles: [a]\nlengths: [0]\n", "at lengths.0"),
        ("out: [", "is no YAML"),
    ],
)
def test_a_plan_that_is_none_is_refused_by_its_fault(plan, text, says):
    with pytest.raises(PocketdraftError, match=says):
        read_sweep(plan(text))


def test_the_same_on_a_ray_cluster_of_this_machine(plan, tmp_path):
    pytest.importorskip("ray")
    outcomes = list(run(points(read_sweep(plan(PLAN))), "ray", 1))
    assert sorted(bool(outcome.error) for outcome in outcomes) == [False] * 12 + [True] * 4
    assert {outcome.error for outcome in outcomes if outcome.error} == {"pocketdraft: four is too many."}
    assert ran(tmp_path) == 12
