"""Holds the two builds to one list of sources: runtimes.toml's folders, which Gradle's files read and do not repeat.

A file that one build compiles and the other does not is named.
"""

from __future__ import annotations

import re
from pathlib import Path

from .description import DEMO, BuildError, Description, load
from .steps import command

SUFFIXES = {".kt": "kotlin", ".java": "kotlin", ".c": "cpp", ".cpp": "cpp", ".S": "cpp"}


def check_sources(description: Description, demo: Path = DEMO) -> None:
    check_folders(description, demo)
    check_shims(description, demo)
    check_gradle(description, demo)


def check_folders(description: Description, demo: Path) -> None:
    """Every source is in a folder of its kind that runtimes.toml lists."""
    listed: dict[str, list[str]] = {"kotlin": [], "cpp": [], "res": []}
    for module in description.modules.values():
        listed["kotlin"] += filter(None, (module.kotlin, module.tests))
        listed["cpp"] += filter(None, (module.cpp,))
        listed["res"] += filter(None, (module.resources,))
        for folder in filter(None, (module.kotlin, module.cpp, module.resources, module.manifest)):
            if not (demo / folder).exists():
                raise BuildError(f"runtimes.toml lists {folder} of module {module.name}, which is not there.")
    for file in sorted(demo.rglob("*")):
        place = file.relative_to(demo)
        kind = SUFFIXES.get(file.suffix)
        if file.suffix == ".xml" and "res" in place.parts:
            kind = "res"
        if kind and file.is_file() and not any(place.is_relative_to(folder) for folder in listed[kind]):
            raise BuildError(
                f"{place} is compiled by neither build or by one alone: runtimes.toml lists "
                f"{', '.join(listed[kind])}; move it there, or list its folder."
            )
        if file.suffix == ".java":
            raise BuildError(f"{place} is compiled by Gradle but not by make apk: write it in Kotlin.")


def check_shims(description: Description, demo: Path) -> None:
    """A module's CMakeLists.txt builds the shims that runtimes.toml lists, of the same sources, and no others."""
    for module in description.modules.values():
        if module.cpp is None:
            continue
        cmake = demo / module.cpp / "CMakeLists.txt"
        built = {
            name: set(sources.split())
            for name, sources in re.findall(r"^add_library\((\w+) SHARED ([^)]*)\)", cmake.read_text(), re.MULTILINE)
        }
        shims = {shim.name: set(shim.sources) for shim in description.shims.values() if shim.module == module.name}
        for name in sorted(built.keys() | shims.keys()):
            if built.get(name) != shims.get(name):
                raise BuildError(
                    f"library {name} is built of {words(built.get(name))} by {cmake.relative_to(demo)} and of "
                    f"{words(shims.get(name))} by runtimes.toml: give both the same sources."
                )
        listed = set().union(*shims.values())
        for file in sorted((demo / module.cpp).rglob("*")):
            if SUFFIXES.get(file.suffix) == "cpp" and str(file.relative_to(demo / module.cpp)) not in listed:
                raise BuildError(
                    f"{file.relative_to(demo)} is in no [shims] of runtimes.toml: list it there, or remove it."
                )


def check_gradle(description: Description, demo: Path) -> None:
    """Each module's Gradle file takes its folders from runtimes.toml and writes none down."""
    for module in description.modules.values():
        gradle = demo / module.name / "build.gradle.kts"
        if not gradle.is_file():
            raise BuildError(f"module {module.name} of runtimes.toml has no {module.name}/build.gradle.kts: write one.")
        text = re.sub(r"//.*", "", gradle.read_text())
        name = gradle.relative_to(demo)
        if literal := re.search(r'"[^"]*src/[^"]*"', text):
            raise BuildError(f"{name} writes {literal[0]} down: take the folder from runtimes.toml.")
        for key in ("kotlin", "tests", "resources", "manifest", "cpp", "assets"):
            if getattr(module, key) and f'described["modules.{module.name}.{key}"]' not in text:
                raise BuildError(f'{name} leaves out described["modules.{module.name}.{key}"] of runtimes.toml.')


def words(sources: set[str] | None) -> str:
    return ", ".join(sorted(sources)) if sources else "nothing"


if __name__ == "__main__":
    command(lambda: check_sources(load()))
