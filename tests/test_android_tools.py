"""The Android build's own tools refuse what must not ship: a wrong download, a misaligned library, a permission."""

from __future__ import annotations

import hashlib
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from android_demo.tools import api_text, elf, fetch, native, steps
from android_demo.tools.apk import Entry, data_offset, pack
from android_demo.tools.checks import check_alignment, check_libraries, check_permissions
from android_demo.tools.class_files import class_file
from android_demo.tools.description import BuildError, Download, load
from android_demo.tools.jvm_types import descriptor, signature

PAGE = load().app.page_size


def library(aligned: int, android: int = 24) -> bytes:
    """An ELF library of one segment, of no symbols, built for an Android."""
    dynamic, note, strings = 232, 264, 288
    head = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 183, 1, 0, 64, 0, 0, 64, 56, 3, 64, 0, 0)
    )
    segments = [
        (elf.LOAD, 5, 0, 0, 0, strings + 1, strings + 1, aligned),
        (elf.DYNAMIC, 6, dynamic, dynamic, dynamic, 32, 32, 8),
        (elf.NOTE, 4, note, note, note, 24, 24, 4),
    ]
    said = struct.pack("<QQQQ", elf.STRINGS, strings, 0, 0) + struct.pack("<III8sI", 8, 4, 1, b"Android", android)
    return head + b"".join(struct.pack("<IIQQQQQQ", *segment) for segment in segments) + said + b"\0"


def apk_of(folder: Path, aligned: int = PAGE, page_size: int = PAGE) -> Path:
    apk = folder / "test.apk"
    entries = [Entry("classes.dex", b"code"), Entry("resources.arsc", b"names")]
    pack([*entries, Entry("lib/arm64-v8a/libone.so", library(aligned))], apk, page_size)
    return apk


def test_a_packed_apk_is_aligned(tmp_path: Path) -> None:
    apk = apk_of(tmp_path)
    check_alignment(apk, PAGE)
    with zipfile.ZipFile(apk) as packed:
        assert packed.testzip() is None
        offsets = {info.filename: data_offset(apk.read_bytes(), info) for info in packed.infolist()}
    assert offsets["lib/arm64-v8a/libone.so"] % PAGE == 0
    assert offsets["resources.arsc"] % 4 == 0


def test_a_library_between_pages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"libone.so starts at byte \d+ of test.apk, which is no multiple of 16384"):
        check_alignment(apk_of(tmp_path, page_size=4096), PAGE)


def test_a_library_linked_for_smaller_pages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"libone.so has a segment aligned to 4096 bytes, but app.page_size is 16384"):
        check_alignment(apk_of(tmp_path, aligned=4096), PAGE)


def test_a_compressed_library_is_refused(tmp_path: Path) -> None:
    apk = tmp_path / "test.apk"
    with zipfile.ZipFile(apk, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("lib/arm64-v8a/libone.so", library(PAGE))
    with pytest.raises(BuildError, match=r"libone.so is compressed"):
        check_alignment(apk, PAGE)


def test_a_library_for_a_newer_android_is_refused(tmp_path: Path) -> None:
    apk = tmp_path / "test.apk"
    pack([Entry("lib/arm64-v8a/libone.so", library(PAGE, android=30))], apk, PAGE)
    check_libraries(apk, 30)
    with pytest.raises(BuildError, match=r"libone.so was built for API level 30, but .* is 26"):
        check_libraries(apk, 26)


def test_a_permission_beyond_the_described_ones_is_refused() -> None:
    dumped = "package: dev.pocketdraft.demo\nuses-permission: name='android.permission.INTERNET'\n"
    check_permissions("package: dev.pocketdraft.demo\n", [])
    check_permissions(dumped, ["android.permission.INTERNET"])
    with pytest.raises(BuildError, match=r"asks for android.permission.INTERNET, but .* allows none"):
        check_permissions(dumped, [])
    assert load().app.permissions == []


def packed_download(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Download, list[str]]:
    """A wheel of one file, a download of it, and the list of transfers made."""
    wheel = folder / "one.whl"
    with zipfile.ZipFile(wheel, "w") as out:
        out.writestr("one/inside.txt", "inside")
        out.writestr("one/other.txt", "other")
    transfers: list[str] = []

    def transfer(download: Download, scratch: Path) -> Path:
        transfers.append(download.name)
        return Path(shutil.copy(wheel, scratch))

    monkeypatch.setattr(fetch, "transfer", transfer)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Download("one", sha256, ["one/in*"], pypi="one==1"), transfers


def test_a_download_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download, transfers = packed_download(tmp_path, monkeypatch)
    for _ in range(2):
        folder = fetch.fetch(download, tmp_path)
        assert [file.name for file in (folder / "one").iterdir()] == ["inside.txt"]
    assert transfers == ["one"]


def test_an_interrupted_fetch_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download, transfers = packed_download(tmp_path, monkeypatch)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fetch, "unpack", interrupted)
        fetch.fetch(download, tmp_path)
    assert not (tmp_path / "unpacked/one").exists()
    # Half an archive left by a machine that stopped is fetched anew, a whole one is not.
    (fetch.fetch(download, tmp_path) / "one/inside.txt").read_text()
    assert transfers == ["one"]
    archive = tmp_path / "downloads/one/one.whl"
    archive.write_bytes(archive.read_bytes()[:10])
    fetch.fetch(replace(download, members=["one/*"]), tmp_path)
    assert transfers == ["one", "one"]


def test_a_download_of_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download, _ = packed_download(tmp_path, monkeypatch)
    with pytest.raises(BuildError, match=f"one==1 came with SHA-256 {download.sha256}, but runtimes.toml says 0000"):
        fetch.fetch(replace(download, sha256="0000"), tmp_path)
    assert not list((tmp_path / "downloads/one").iterdir())


def test_a_step_is_made_again_only_when_its_inputs_change(tmp_path: Path) -> None:
    source, made = tmp_path / "source", []

    def make(output: Path) -> None:
        made.append(source.read_text())
        output.write_text(made[-1])

    for text in ("one", "one", "two"):
        source.write_text(text)
        assert steps.step(tmp_path / "output", [source], make).read_text() == text
    assert made == ["one", "two"]


def test_a_shim_may_ask_android_only_for_what_the_runtimes_ask_it() -> None:
    runtime = elf.Library([PAGE], ["libc.so"], None, {"litert_lm_open"}, {"memcpy"})
    shim = elf.Library([PAGE], [], None, set(), {"memcpy", "litert_lm_open"})
    files = {Path("libruntime.so"): runtime, Path("libfbjni.so"): shim}
    native.check_symbols(files, load(), "arm64-v8a")
    files[Path("libfbjni.so")] = replace(shim, undefined={"__errno_location"})
    with pytest.raises(BuildError, match=r"libfbjni.so for arm64-v8a asks for __errno_location"):
        native.check_symbols(files, load(), "arm64-v8a")


def test_the_api_text_reads() -> None:
    text = (
        '@Nullable @StringRes(a=(1), b="@x") public static <T extends android.view.View> T find(@NonNull int[], T...)'
    )
    member = api_text.read_member(f"method {text} throws java.io.IOException;")
    assert (member.name, member.type, member.nullable) == ("find", "T", True)
    assert member.modifiers == {"public", "static"}
    assert member.type_parameters == {"T": ["android.view.View"]}
    assert [(parameter.type, parameter.nullable) for parameter in member.parameters] == [
        ("int[]", False),
        ("T...", None),
    ]
    assert member.throws == ["java.io.IOException"]
    field = api_text.read_member('field public static final String WORD = "a; // b"; // note')
    assert (field.name, field.value) == ("WORD", '"a; // b"')


def test_types_are_written_as_the_virtual_machine_reads_them() -> None:
    variables = {"T": ["android.view.View"]}
    assert descriptor("java.util.Map.Entry<K,V>[]", {}) == "[Ljava/util/Map$Entry;"
    assert descriptor("T...", variables) == "[Landroid/view/View;"
    assert signature("java.util.Map<? super T,String[]>", variables) == "Ljava/util/Map<-TT;[Ljava/lang/String;>;"
    entry = api_text.read_class("android.app", "public class Activity extends android.content.Context ")
    assert class_file(entry, {entry.internal: entry})[:8] == bytes.fromhex("cafebabe00000034")
