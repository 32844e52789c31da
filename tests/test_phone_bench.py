"""`pocketdraft phone-bench` against a scripted adb, whose `am` does what the app does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from phones import Phone, make_bundle
from typer.testing import CliRunner

from pocketdraft.runtime import phone_bench as benching
from pocketdraft.runtime.cli import app
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import read
from pocketdraft.runtime.profile import files_digest, read_profile
from pocketdraft.runtime.push import push

# Its arguments: start -n ACTIVITY --es benchmark NAME --es run RUN.
AM = """
[ "$1" = force-stop ] && {{ echo "$2" >> {phone}/ended; exit 0; }}
results={phone}/sdcard/Android/data/dev.pocketdraft.demo/files/results
mkdir -p $results
echo "$6" > {phone}/asked
cp {phone}/app.profile.json $results/$9.profile.json
echo '{status}' > $results/$9.status.json
"""
DONE = '{"state": "done", "share": 1.0, "message": ""}'


@pytest.fixture
def bundle(tmp_path) -> Path:
    return make_bundle(tmp_path / "my bundle")


@pytest.fixture
def phone(tmp_path, monkeypatch, bundle) -> Phone:
    """With the app installed, and the bundle pushed."""
    phone = Phone(tmp_path / "phone")
    monkeypatch.setenv("PATH", f"{phone.folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(benching, "POLL_S", 0.0)
    phone.script("pm", "echo package:/data/app/base.apk")
    answer(phone, bundle, DONE)
    push(bundle, None, lambda *_: None)
    return phone


def answer(phone: Phone, bundle: Path, status: str, **changes: object) -> None:
    example = json.loads((Path(__file__).parent / "golden/profile.json").read_text())
    profile = example | {"bundle_sha256": files_digest(read(bundle))} | changes
    phone.say("app.profile.json", json.dumps(profile))
    phone.script("am", AM.format(phone=phone.folder, status=status))


def measure(bundle: Path):
    return benching.phone_bench(bundle, None, lambda *_: None)


def left(phone: Phone) -> list[Path]:
    return list((phone.folder / "sdcard").rglob("*.json"))


def test_the_phone_s_profile_is_fetched_and_its_files_are_cleared_away(phone, bundle, tmp_path):
    out = tmp_path / "profile.json"
    done = CliRunner().invoke(app, ["phone-bench", str(bundle), "--out", str(out), "--quiet"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "the profile of Example Phone" in done.output
    assert read_profile(out).device.name == "Example Phone"
    assert (phone.folder / "asked").read_text() == "my bundle\n"
    assert left(phone) == []


def test_what_the_app_refuses_is_told_in_its_words(phone, bundle):
    answer(phone, bundle, '{"state": "failed", "share": 0, "message": "The bundle needs 900 MB"}')
    with pytest.raises(PocketdraftError, match=r"The app says: The bundle needs 900 MB"):
        measure(bundle)
    assert left(phone) == []


def test_a_phone_without_the_app(phone, bundle):
    phone.script("pm", "exit 1")
    with pytest.raises(PocketdraftError, match=r"has no dev.pocketdraft.demo; install the demo first"):
        measure(bundle)


def test_a_bundle_that_was_not_pushed_or_has_changed(phone, bundle):
    (bundle / "bundle.json").write_text((bundle / "bundle.json").read_text() + "\n")
    with pytest.raises(PocketdraftError, match=r"is not .*; push it first: pocketdraft push"):
        measure(bundle)
    assert not (phone.folder / "asked").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"graphs": []}, "profile is damaged at"),
        ({"surprise": 1}, "profile is damaged at surprise"),
        ({"bundle_sha256": "0" * 64}, "measured another bundle"),
    ],
)
def test_a_profile_that_is_damaged_or_of_another_bundle(phone, bundle, changes, says):
    answer(phone, bundle, DONE, **changes)
    with pytest.raises(PocketdraftError, match=says):
        measure(bundle)


def test_an_app_that_falls_silent_is_given_up(phone, bundle, monkeypatch):
    monkeypatch.setattr(benching, "SILENT_S", 0.0)
    answer(phone, bundle, '{"state": "running", "share": 0.5, "message": ""}')
    with pytest.raises(PocketdraftError, match=r"said nothing for 0 s; unlock the phone"):
        measure(bundle)


def test_ctrl_c_ends_the_run_on_the_phone_too(phone, bundle, monkeypatch):
    answer(phone, bundle, '{"state": "running", "share": 0.5, "message": ""}')

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(benching.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure(bundle)
    assert (phone.folder / "ended").read_text() == "dev.pocketdraft.demo\n"


def test_no_folder_for_the_profile_is_told_before_the_phone_works(phone, bundle, tmp_path):
    result = CliRunner().invoke(app, ["phone-bench", str(bundle), "--out", str(tmp_path / "no" / "p.json")])
    assert isinstance(result.exception, PocketdraftError)
    assert not (phone.folder / "asked").exists()
