"""`make apk` makes an APK that says of itself what runtimes.toml says, and the Kotlin's own tests pass."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from running import android_tool

from android_demo.tools import build, checks, jvm
from android_demo.tools.description import BuildError, load
from android_demo.tools.steps import run

pytestmark = pytest.mark.android


@pytest.fixture(scope="module")
def apk() -> Path:
    android_tool("build")
    return build.APK


def test_the_apk_has_code_and_every_library(apk: Path) -> None:
    description = load()
    with zipfile.ZipFile(apk) as packed:
        names = set(packed.namelist())
    assert {"AndroidManifest.xml", "resources.arsc", "classes.dex"} <= names
    for abi in description.app.abis:
        for shim in description.shims:
            assert f"lib/{abi}/lib{shim}.so" in names


def test_what_the_checks_refuse_is_refused_of_a_real_apk(apk: Path, tmp_path: Path) -> None:
    description = load()
    checks.check_apk(apk, description.app)
    moved = tmp_path / "moved.apk"
    with zipfile.ZipFile(apk) as packed, zipfile.ZipFile(moved, "w") as out:
        for info in packed.infolist():
            out.writestr(zipfile.ZipInfo(info.filename), packed.read(info))
    with pytest.raises(BuildError, match="starts at byte"):
        checks.check_alignment(moved, description.app.page_size)
    with pytest.raises(BuildError, match="apksigner"):
        checks.check_signature(moved, description.app.min_sdk)


def test_a_second_build_makes_nothing(apk: Path) -> None:
    assert "making" not in android_tool("build")


def test_kotlin_sees_what_may_be_null(tmp_path: Path) -> None:
    """The generated android.jar keeps @Nullable: what would not compile in Android Studio does not here."""
    source = tmp_path / "Careless.kt"
    source.write_text('fun length(intent: android.content.Intent): Int = intent.getStringExtra("a").length\n')
    description = load()
    compiler = jvm.UNPACKED / "kotlin-compiler/package/lib/kotlin-compiler.jar"
    android = jvm.android_jar(description)
    classpath = ":".join(map(str, [android, *jvm.runtime_jars([description.runtimes["kotlin-stdlib"]])]))
    with pytest.raises(BuildError, match="only safe"):
        run(
            *("java", "-cp", compiler, "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-no-stdlib", "-no-reflect"),
            *("-cp", classpath, "-d", tmp_path / "careless.jar", source),
        )


def test_the_kotlin_tests_pass() -> None:
    assert "OK (" in android_tool("jvm", "test")


def test_the_class_path_is_all_there() -> None:
    jars = android_tool("jvm", "classpath").strip().split(":")
    assert all(Path(jar).is_file() for jar in jars)
    assert any(Path(jar).name == "engines.jar" for jar in jars)
