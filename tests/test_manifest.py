"""A damaged or hostile bundle is refused with a sentence that names the offender, before any graph is opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted import scripted_manifest

from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import FORMAT_VERSION, FileEntry, open_bundle

MODEL = b"graphs of all parts"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.litertlm").write_bytes(MODEL)
    (folder / "tokenizer.json").write_bytes(MODEL)
    entry = FileEntry(sha256=hashlib.sha256(MODEL).hexdigest(), size=len(MODEL))
    files = {"model.litertlm": entry, "tokenizer.json": entry}
    manifest = scripted_manifest().model_copy(update={"files": files})
    (folder / "bundle.json").write_text(manifest.dump())
    return folder


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / "bundle.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def refused(bundle: Path) -> str:
    with pytest.raises(PocketdraftError) as caught:
        open_bundle(bundle)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_was_dumped_is_read_back(bundle):
    assert open_bundle(bundle).dump() == (bundle / "bundle.json").read_text()


def test_a_bundle_that_names_no_device_is_the_cpu_s(bundle):
    edit(bundle, lambda values: values.pop("device"))
    assert open_bundle(bundle).device == "cpu"


@pytest.mark.parametrize("at", range(0, len(MODEL), 6))
def test_a_changed_byte_is_refused_and_the_file_named(bundle, at):
    changed = bytearray(MODEL)
    changed[at] ^= 1
    (bundle / "model.litertlm").write_bytes(changed)
    assert "model.litertlm is not the file that was exported" in refused(bundle)


@pytest.mark.parametrize("data", [b"", MODEL[:-1], MODEL + b"\0"])
def test_a_file_of_another_size_is_refused(bundle, data):
    (bundle / "model.litertlm").write_bytes(data)
    assert "model.litertlm is not the file" in refused(bundle)


def test_a_missing_file_is_named(bundle):
    (bundle / "model.litertlm").unlink()
    assert "model.litertlm is missing" in refused(bundle)


def test_a_folder_without_a_manifest_is_no_bundle(bundle):
    (bundle / "bundle.json").unlink()
    assert "is no bundle" in refused(bundle)


def test_a_newer_format_version_is_refused_with_both_versions(bundle):
    edit(bundle, lambda values: values.update(format_version=FORMAT_VERSION + 1))
    assert f"format version {FORMAT_VERSION + 1}, this pocketdraft reads {FORMAT_VERSION}" in refused(bundle)


def test_a_newer_bundle_is_said_to_be_newer_even_if_it_has_keys_that_we_do_not_know(bundle):
    edit(bundle, lambda values: values.update(format_version=FORMAT_VERSION + 1, sampling="new"))
    assert "format version" in refused(bundle)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda values: values.update(device="npu"), "at device (Input should be 'cpu' or 'gpu')"),
        (lambda values: values.update(kv_heads=1), "at kv_heads"),
        (lambda values: values["tokens"].update(eos=1), "at tokens.eos"),
        (lambda values: values["graphs"][0].update(width="wide"), "at graphs.0.width"),
        (lambda values: values.pop("vocab_size"), "at vocab_size"),
    ],
)
def test_an_unknown_missing_or_mistyped_key_is_named(bundle, change, where):
    edit(bundle, change)
    assert where in refused(bundle)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 10_000])
def test_damaged_json_is_refused(bundle, data):
    (bundle / "bundle.json").write_bytes(data)
    assert "bundle.json is damaged" in refused(bundle)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "link/secret"])
def test_a_path_that_leaves_the_bundle_is_refused_unread(bundle, name):
    (bundle.parent / "secret").write_bytes(MODEL)
    (bundle / "link").symlink_to(bundle.parent)
    edit(bundle, lambda values: values["files"].update({name: values["files"]["model.litertlm"]}))
    assert f"{name!r}, which leaves the bundle" in refused(bundle)


def test_a_part_of_a_file_that_is_not_listed_is_refused(bundle):
    edit(bundle, lambda values: values["parts"]["target"].update(file="other.litertlm"))
    assert "takes a graph from other.litertlm" in refused(bundle)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v["files"].pop("tokenizer.json"), "does not list tokenizer.json"),
        (lambda v: v["parts"]["target"].update(offset=-1), "damaged at parts.target.offset"),
        (lambda v: v["parts"]["target"].update(size=10**6), "places target up to byte 1000000"),
        (lambda v: v.update(graphs=[]), "has no embed graph"),
        (lambda v: v["parts"].pop("drafter"), "in a part 'drafter' that it lacks"),
        (lambda v: v.update(format_version=1), "format version 1, this pocketdraft reads 2; export it again"),
        (lambda v: v["files"].update({"a\0b": v["files"]["tokenizer.json"]}), "is no file name"),
    ],
)
def test_a_manifest_that_a_runtime_could_not_run_is_refused(bundle, change, says):
    edit(bundle, change)
    assert says in refused(bundle)
