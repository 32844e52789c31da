"""bench by length, profile, tune, import and report as commands, on a real bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_cli import call, names, refusal

from pocketdraft.runtime.manifest import read
from pocketdraft.runtime.profile import read_profile
from pocketdraft.runtime.results import Results, read_results

FEW = ("--per-domain", "1", "--max-tokens", "12", "--quiet")


@pytest.fixture(scope="module")
def whole(make_bundle) -> Path:
    return Path(make_bundle("shared", "f32"))


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def profile(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "here.json"
    done = call("profile", whole, "--out", path, *FEW)
    assert done.returncode == 0, done.stderr
    return path


def slow_verify(profile: Path, out: Path) -> Path:
    """Verifying T tokens takes as long as decoding T, and nothing else takes any time: what was measured of a few
    rounds on a busy machine may say that drafting saves some."""
    content = json.loads(profile.read_text())
    content["host"].update(round_s=0.0, lookup_share=0.0)
    for drafting in content["drafters"].values():
        drafting.update(drafting_s=0.0, draft_s=0.0)
    decode = next(graph["median_s"] for graph in content["graphs"] if graph["role"] == "decode")
    for graph in content["graphs"]:
        if graph["role"] == "verify":
            times = ("median_s", "lower_quartile_s", "upper_quartile_s")
            graph.update(dict.fromkeys(times, decode * graph["width"]))
    out.write_text(json.dumps(content))
    return out


def test_a_profile_of_this_machine_has_all_graphs_and_the_bundle_s_digest(whole, profile):
    found, manifest = read_profile(profile), read(whole)
    assert {graph.name for graph in found.graphs} == {graph.name for graph in manifest.graphs}
    assert found.origin == "measured"
    assert found.memory_bandwidth
    assert found.memory_bandwidth > 1e8


def test_a_device_whose_verify_is_slow_turns_drafting_off_and_run_starts_so(bundle, profile, tmp_path):
    slow = slow_verify(profile, tmp_path / "slow.json")
    done = call("tune", bundle, "--device", slow, *FEW, "--json")
    assert done.returncode == 0, done.stderr
    tuned = json.loads(done.stdout)
    assert (tuned["drafter"], tuned["drafts"]) == ("none", 0)
    assert "as fast as plain decoding" in tuned["reason"]
    assert read(bundle).tuned is not None
    started = json.loads(call("run", bundle, "--prompt", "import", "--max-tokens", "8", "--json").stdout)
    assert (started["drafter"], started["stats"]["proposed"]) == ("none", 0)
    told = json.loads(call("run", bundle, "--prompt", "import", "--max-tokens", "8", "--drafts", "2", "--json").stdout)
    assert told["drafter"] == "mtp"
    assert told["stats"]["proposed"] > 0


def test_a_tuned_bundle_is_still_whole(bundle, profile, tmp_path):
    call("tune", bundle, "--device", slow_verify(profile, tmp_path / "slow.json"), *FEW)
    assert call("inspect", bundle).returncode == 0
    assert read_profile(profile).bundle_sha256, "the digest is that of the files, which tuning leaves alone"
    assert call("tune", bundle, "--device", profile, *FEW).returncode == 0


def test_a_dry_run_leaves_the_bundle_as_it_is(bundle, profile):
    before = (bundle / "bundle.json").read_bytes()
    assert call("tune", bundle, "--device", profile, "--dry-run", *FEW).returncode == 0
    assert (bundle / "bundle.json").read_bytes() == before


def test_a_profile_of_another_bundle_is_refused(bundle, profile, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(profile.read_text()) | {"bundle_sha256": "f" * 64}))
    before = (bundle / "bundle.json").read_bytes()
    assert "is of a bundle ffffffffffff" in refusal("tune", bundle, "--device", other)
    assert (bundle / "bundle.json").read_bytes() == before


def test_bench_writes_what_report_shows(whole, tmp_path):
    out = tmp_path / "results.json"
    done = call("bench", whole, "--check", "--batch", "1,2", "--no-parity", "--out", out, *FEW, "--per-domain", "2")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["identical"] is True
    found = read_results(out)
    assert isinstance(found, Results)
    assert [point.drafts for point in found.of("all")] == [0, 1, 2, 3, 4]
    assert {one.drafts for one in found.predictions if one.held_out} == {2, 3, "auto"}
    assert found.first_token
    assert found.first_token.cold_s > found.first_token.warm_s > 0
    assert call("report", out, "--out", tmp_path / "r.html").returncode == 0
    assert {"r.html", "r.md", "r.json"} <= set(names(tmp_path))


def test_each_of_the_drafters_named_is_predicted_but_one_that_learns(whole, tmp_path):
    out, drafters = tmp_path / "results.json", "mtp,hybrid,prompt_lookup"
    done = call("bench", whole, "--check", "--drafter", drafters, "--no-parity", "--out", out, *FEW)
    assert done.returncode == 0, done.stderr
    found = read_results(out)
    assert isinstance(found, Results)
    assert {one.drafter for one in found.predictions} == {"none", "mtp", "prompt_lookup"}
    assert found.profile
    assert set(found.profile.drafters) == {"mtp", "hybrid", "prompt_lookup"}


def test_a_bundle_without_any_drafter_is_profiled_and_tuned(bundle, tmp_path):
    content = json.loads((bundle / "bundle.json").read_text())
    content["drafters"]["mtp"] = None
    content["graphs"] = [graph for graph in content["graphs"] if graph["role"] != "draft"]
    (bundle / "bundle.json").write_text(json.dumps(content))
    out = tmp_path / "here.json"
    assert call("profile", bundle, "--out", out, *FEW).returncode == 0
    done = call("tune", bundle, "--device", out, *FEW, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["drafter"] in ("prompt_lookup", "none")


def test_sampled_runs_have_figures_and_no_claim_of_the_same_tokens(whole, tmp_path):
    out = tmp_path / "sampled.json"
    assert (
        call("bench", whole, "--lengths", "2", "--temperature", "1", "--no-parity", "--out", out, *FEW).returncode == 0
    )
    found = read_results(out)
    assert isinstance(found, Results)
    assert found.identical is None
    assert found.temperature == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--lengths", "9"], "--lengths asks for 9 drafts, the widest verify graph of"),
        (["--lengths", "4-1"], "--lengths is '4-1'"),
        (["--batch", "0"], "--batch is '0'"),
        (["--batch", "4"], "--batch asks for 4 rows, no domain has more than 1 prompts"),
        (["--clock", "cpu", "--threads", "2"], "--clock is cpu, --threads is 2"),
        (["--check", "--temperature", "1"], "--check is given at a temperature"),
        (["--check", "--drafter", "hybrid,mtp_tree"], "--check cannot predict hybrid, mtp_tree, whose drafts depend"),
        (["--out", "none/r.json"], "is no folder"),
    ],
)
def test_bench_refuses_what_it_cannot_do(whole, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert says in refusal("bench", whole, "--per-domain", "1", "--max-tokens", "4", *arguments)
    assert names(tmp_path) == []


def test_several_bundles_have_no_lengths(whole):
    assert "2 bundles are given" in refusal("bench", whole, whole, "--check")
