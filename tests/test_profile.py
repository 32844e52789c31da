"""The format that the app writes too, and what is refused of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scripted import ScriptedEngine, scripted_manifest

from pocketdraft.runtime.cost import RoundCost
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.files import write_whole
from pocketdraft.runtime.manifest import FileEntry
from pocketdraft.runtime.profile import Profile, files_digest, read_profile, reported, write_profile
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.timing import Generation, TimedEngine, Timings, time_prefills

GOLDEN = Path(__file__).parent / "golden" / "profile.json"


@pytest.fixture
def spoiled(tmp_path: Path):
    def spoil(**fields: object) -> Path:
        path = tmp_path / "profile.json"
        path.write_text(json.dumps(json.loads(GOLDEN.read_text()) | fields))
        return path

    return spoil


def test_the_golden_profile_reads_and_writes_as_it_is(tmp_path):
    profile = read_profile(GOLDEN)
    write_profile(profile, tmp_path / "again.json")
    assert read_profile(tmp_path / "again.json") == profile
    assert RoundCost.of(profile).verify_s == ((1, 0.04), (5, 0.05), (9, 0.07))
    assert (tmp_path / "again.json").read_bytes() == GOLDEN.read_bytes()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"grahps": []}, "at grahps"),
        ({"graphs": []}, "a measured profile has a backend, a bundle_sha256, graphs and host"),
        ({"origin": "guessed"}, "at origin"),
        ({"format_version": 2}, "has format version 2, this pocketdraft reads 1"),
        ({"threads": -1}, "at threads"),
    ],
)
def test_a_profile_that_is_none_is_refused_by_its_fault(spoiled, fields, says):
    with pytest.raises(PocketdraftError, match=says):
        read_profile(spoiled(**fields))


def test_quartiles_that_do_not_enclose_the_median_are_refused(spoiled):
    graphs = json.loads(GOLDEN.read_text())["graphs"]
    graphs[1]["median_s"] = 9.0
    with pytest.raises(PocketdraftError, match="the quartiles of decode do not enclose its median"):
        read_profile(spoiled(graphs=graphs))


def test_a_missing_profile_is_named(tmp_path):
    with pytest.raises(PocketdraftError, match=r"no profile .*none.json; take one with `pocketdraft profile BUNDLE`"):
        read_profile(tmp_path / "none.json")


def test_public_figures_are_all_marked_as_reported():
    found = reported()
    assert len(found) >= 10
    assert {profile.origin for profile in found} == {"reported"}
    assert all(profile.source and profile.speeds and not profile.graphs for profile in found)
    slower = [speed.gain for profile in found for speed in profile.speeds if "Pixel" in profile.device.name]
    assert slower == [pytest.approx(3.00 / 8.70)]


def test_the_digest_follows_the_files_and_not_what_the_manifest_says_of_them():
    manifest = scripted_manifest()
    assert files_digest(manifest) == files_digest(manifest.model_copy(update={"versions": {"pocketdraft": "9"}}))
    other = {"model.litertlm": FileEntry(sha256="f", size=1)}
    assert files_digest(manifest) != files_digest(manifest.model_copy(update={"files": other}))


def profiled(lengths: tuple[int, ...] = (0, 1, 2, 4)) -> Profile:
    """Of the scripted engine, whose calls take no time worth telling: only what is counted matters here."""
    engine = TimedEngine(ScriptedEngine(scripted_manifest(400)))
    timings = Timings(prefills=time_prefills(Target(engine), engine, np.random.default_rng(0)))
    for drafts in lengths:
        for start in range(3):
            session = open_session(engine, "mtp" if drafts else "none", drafts)
            session.begin([start, 2, 3], 60)
            engine.take()
            while session.context.finish is None:
                session.round()
            stats = session.stats
            one = Generation(stats.rounds, stats.drafted_rounds, stats.proposed, stats.total_s, engine.take())
            timings.texts.setdefault(("mtp" if drafts else "none", drafts), []).append(one)
    return timings.profile(engine.manifest, 1, lengths, 1e9)


def test_a_profile_of_this_machine_has_every_graph_and_predicts():
    profile = profiled()
    assert {graph.name for graph in profile.graphs} == {graph.name for graph in scripted_manifest().graphs}
    by_name = {graph.name: graph for graph in profile.graphs}
    assert by_name["prefill_8"].filled == 0
    assert by_name["verify_5"].filled > 3
    assert profile.host is not None
    assert 0 < profile.host.lookup_share < 1, "rows of tokens that were seen before are not looked up again"
    assert set(profile.drafters) == {"mtp"}
    cost = RoundCost.of(profile)
    assert [width for width, _ in cost.verify_s] == [1, 2, 3, 5]
    assert cost.seconds(4) > cost.seconds(0) > 0


def test_a_profile_without_any_draft_is_refused():
    with pytest.raises(PocketdraftError, match="No round ran verify_2 or any other graph that verifies"):
        profiled((0,))


def test_a_file_is_there_as_a_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "bundle.json"
    write_whole(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new, and longer")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle.json"]
