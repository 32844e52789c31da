"""`pocketdraft push` against a scripted adb: a shell on a folder that stands for the phone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from phones import Phone, make_bundle

from pocketdraft.runtime import push as pushing
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import FileEntry, sha256


@pytest.fixture
def phone(tmp_path, monkeypatch) -> Phone:
    phone = Phone(tmp_path / "phone")
    monkeypatch.setenv("PATH", f"{phone.folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(pushing, "PIECE_BYTES", 1000)
    return phone


@pytest.fixture
def bundle(tmp_path) -> Path:
    return make_bundle(tmp_path / "my bundle")


def send(bundle: Path, serial: str | None = None) -> pushing.Pushed:
    return pushing.push(bundle, serial, lambda *_: None)


def assert_arrived(phone: Phone, bundle: Path) -> None:
    assert {path.name for path in phone.place.iterdir()} == {path.name for path in bundle.iterdir()}
    for path in bundle.iterdir():
        assert (phone.place / path.name).read_bytes() == path.read_bytes()


def test_a_bundle_arrives_whole(phone, bundle):
    found = send(bundle)
    assert_arrived(phone, bundle)
    assert found.sent == found.size == sum(path.stat().st_size for path in bundle.iterdir())


def test_what_is_there_is_not_sent_again(phone, bundle):
    send(bundle)
    before = phone.pushes()
    assert send(bundle).sent == 0
    assert phone.pushes() == before


def test_an_interrupted_push_goes_on_where_it_stopped(phone, bundle):
    phone.say("fail", "4")
    with pytest.raises(
        PocketdraftError,
        match=r"push failed \(adb: error: device offline\); reconnect.* again",
    ):
        send(bundle)
    assert not (phone.place / "bundle.json").exists()  # nothing that opens
    assert (phone.place / "model.litertlm.partial").stat().st_size == 3000
    found = send(bundle)
    assert_arrived(phone, bundle)
    assert found.size - found.sent == 3000


def test_a_piece_cut_short_on_the_phone_is_sent_again(phone, bundle):
    phone.say("fail", "4")
    with pytest.raises(PocketdraftError):
        send(bundle)
    partial = phone.place / "model.litertlm.partial"
    partial.write_bytes(partial.read_bytes()[:2500])  # killed while appending
    found = send(bundle)
    assert found.size - found.sent == 2000
    assert_arrived(phone, bundle)


def test_another_file_of_that_name_is_not_built_upon(phone, bundle):
    phone.place.mkdir(parents=True)
    (phone.place / "model.litertlm.partial").write_bytes(bytes(3000))
    found = send(bundle)
    assert found.sent == found.size
    assert_arrived(phone, bundle)


def test_a_damaged_piece_is_named_and_never_appended(phone, bundle):
    phone.say("damage", "2")
    with pytest.raises(PocketdraftError, match=r"model\.litertlm arrived damaged, at byte 1000; push again"):
        send(bundle)
    send(bundle)
    assert_arrived(phone, bundle)


def test_a_changed_bundle_replaces_the_old_one(phone, bundle, tmp_path):
    send(bundle)
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "tokenizer.json").write_bytes(b'{"new": 1}')
    manifest["files"]["tokenizer.json"] = FileEntry(sha256=sha256(bundle / "tokenizer.json"), size=10).model_dump()
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    before = phone.pushes()
    send(bundle)
    assert_arrived(phone, bundle)
    assert phone.pushes() - before <= 1 + len((bundle / "bundle.json").read_bytes()) // 1000 + 1  # not the model


def test_too_little_room_shows_both_sizes(phone, bundle):
    phone.say("df", "Filesystem 1K-blocks Used Available Use% Mounted\n/data 100 1 65000 1% /data\n")
    with pytest.raises(PocketdraftError, match=r"needs 67 MB on the phone, 67 MB are free"):
        send(bundle)


@pytest.mark.parametrize(
    ("devices", "serial", "says"),
    [
        ("", None, r"sees 0 phones that are ready, one is needed \(none\)"),
        ("a\tunauthorized\n", None, r"0 phones that are ready, one is needed \(a \(unauthorized\)\)"),
        ("a\tdevice\nb\tdevice\n", None, r"2 phones that are ready.*--serial"),
        ("a\tdevice\n", "z", r"phone z is not connected.*\['a'\]"),
        ("a\tunauthorized\n", "a", r"phone a is unauthorized"),
    ],
)
def test_no_phone_or_several(phone, bundle, devices, serial, says):
    phone.say("devices", devices)
    with pytest.raises(PocketdraftError, match=says):
        send(bundle, serial)


def test_no_adb(bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PocketdraftError, match="adb is not installed"):
        send(bundle)


def test_a_damaged_bundle_is_not_sent(phone, bundle):
    (bundle / "model.litertlm").write_bytes(b"other")
    with pytest.raises(PocketdraftError, match="is not the file that was exported"):
        send(bundle)
    assert phone.pushes() == 0
