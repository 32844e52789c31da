"""Gradle and `make apk` compile the same files: one that only one of them would is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from android_demo.tools.description import DEMO, BuildError, load
from android_demo.tools.sources import check_sources


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO, tmp_path / "android_demo"))


def test_both_builds_compile_the_same_sources() -> None:
    check_sources(load())


@pytest.mark.parametrize(
    "stray",
    [
        "core/src/main/java/Stray.kt",
        "app/src/debug/kotlin/Stray.kt",
        "app/src/debug/res/values/stray.xml",
        "engines/src/main/kotlin/Stray.java",
        "engines/src/main/cpp/stray.c",
        "engines/src/main/stray.cpp",
    ],
)
def test_a_source_outside_both_builds_is_named(demo: Path, stray: str) -> None:
    (demo / stray).parent.mkdir(parents=True, exist_ok=True)
    (demo / stray).touch()
    with pytest.raises(BuildError, match=Path(stray).stem):
        check_sources(load(), demo)


@pytest.mark.parametrize(
    ("file", "was", "becomes", "named"),
    [
        ("core/build.gradle.kts", 'described["modules.core.kotlin"]!!', '"core/src/main/kotlin"', "writes .* down"),
        ("core/build.gradle.kts", 'described["modules.core.tests"]!!', '"elsewhere"', "modules.core.tests"),
        ("engines/src/main/cpp/CMakeLists.txt", "SHARED fbjni_absent.c", "SHARED other.c", "fbjni .*other.c"),
        ("engines/src/main/cpp/CMakeLists.txt", "add_library(fbjni", "# add_library(fbjni", "fbjni .*nothing"),
    ],
)
def test_a_build_file_that_goes_its_own_way_is_named(demo: Path, file: str, was: str, becomes: str, named: str) -> None:
    text = (demo / file).read_text()
    assert was in text
    (demo / file).write_text(text.replace(was, becomes))
    with pytest.raises(BuildError, match=named):
        check_sources(load(), demo)
