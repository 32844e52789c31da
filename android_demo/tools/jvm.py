"""Kotlin to jars: Android's classes to compile against, the modules, their tests, and the class path of a host JVM."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from . import api_text, class_files
from .description import BUILD, DEMO, BuildError, Description, Module, Runtime, load
from .fetch import fetch
from .steps import command, run, step

UNPACKED = BUILD / "unpacked"
# A compiler runs for seconds: the JVM's first compiler alone, and one collector thread, cost half of the default's.
SHORT_LIVED = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx1500m")


def android_jar(description: Description) -> Path:
    """Android's public classes, without code."""
    text = fetch(description.downloads["android-api"]) / "core/api/current.txt"

    def make(jar: Path) -> None:
        class_files.write_jar(api_text.read(text), jar)

    return step(BUILD / "classes" / "android.jar", [text], make)


def runtime_jars(runtimes: list[Runtime]) -> list[Path]:
    jars = [UNPACKED / jar for runtime in runtimes for jar in runtime.jars]
    for jar in jars:
        if not jar.is_file():
            raise BuildError(f"{jar} is not there although runtimes.toml names it: remove its folder and build again.")
    return jars


def module_jar(description: Description, name: str, extra: tuple[Path, ...] = ()) -> Path:
    """A module's Kotlin as a jar, after the modules that it needs. `extra` is what generated code adds."""
    module = description.modules[name]
    classpath = [*extra, *(module_jar(description, needed) for needed in module.modules)]
    classpath += runtime_jars([description.runtimes[needed] for needed in ["kotlin-stdlib", *module.runtimes]])
    if module.android:
        classpath.append(android_jar(description))
    return kotlin_jar(description, name, DEMO / module.kotlin, classpath)


def tests_jar(description: Description, module: Module) -> Path | None:
    """A module's tests as a jar, or None where it has none yet. They see what is internal to the module."""
    folder = DEMO / module.tests if module.tests else None
    if folder is None or not any(folder.rglob("*.kt")):
        return None
    needed = ["kotlin-stdlib", *module.runtimes, "junit4"]
    own = module_jar(description, module.name)
    classpath = [own, *(module_jar(description, other) for other in module.modules)]
    classpath += runtime_jars([description.runtimes[runtime] for runtime in needed])
    return kotlin_jar(description, f"{module.name}-tests", folder, classpath, f"-Xfriend-paths={own}")


def kotlin_jar(description: Description, name: str, sources: Path, classpath: list[Path], *options: str) -> Path:
    compiler = fetch(description.downloads["kotlin-compiler"]) / "package/lib/kotlin-compiler.jar"
    if not any(sources.rglob("*.kt")):
        raise BuildError(f"{sources} has no Kotlin: [modules] in runtimes.toml names the folder.")

    def make(jar: Path) -> None:
        finished = jar.with_name(f"kotlinc-{name}.jar")
        run(
            *("java", *SHORT_LIVED, "-cp", str(compiler), "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"),
            *("-no-stdlib", "-no-reflect", f"-Xjdk-release={description.app.jvm_target}", "-module-name", name),
            *("-cp", os.pathsep.join(map(str, classpath)), *options, "-d", str(finished), str(sources)),
        )
        os.replace(finished, jar)

    return step(BUILD / "classes" / f"{name}.jar", [compiler, sources, *classpath, *options], make)


def host_classpath(description: Description, tests: bool = False) -> list[Path]:
    """What `java -cp` needs to run the modules that know nothing of Android, and with `tests` their tests."""
    for download in description.downloads.values():
        if download.debian or download.npm:
            fetch(download)
    modules = [module for module in description.modules.values() if not module.android]
    jars = [module_jar(description, module.name) for module in modules]
    runtimes = description.packed_runtimes()
    if tests:
        jars += filter(None, (tests_jar(description, module) for module in modules))
        runtimes.append(description.runtimes["junit4"])
    return jars + runtime_jars(runtimes)


def run_tests(description: Description) -> int:
    """JUnit 4 over every class of the test jars whose name ends in Test."""
    classpath = host_classpath(description, tests=True)
    names: list[str] = []
    for jar in classpath:
        if jar.stem.endswith("-tests"):
            with zipfile.ZipFile(jar) as packed:
                names += [entry[:-6].replace("/", ".") for entry in packed.namelist() if entry.endswith("Test.class")]
    if not names:
        raise BuildError("no class whose name ends in Test is in the modules' tests: there is nothing to run.")
    command = ["java", "-cp", os.pathsep.join(map(str, classpath)), "org.junit.runner.JUnitCore", *sorted(names)]
    # They read what the Python runtime recorded, from the repository's folder.
    return subprocess.run(command, cwd=DEMO.parent).returncode


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m android_demo.tools.jvm", description=__doc__)
    parser.add_argument("action", choices=("classpath", "test"), help="classpath: what `java -cp` needs; test: JUnit")
    parser.add_argument("--tests", action="store_true", help="the class path has the modules' tests and JUnit too")
    arguments = parser.parse_args()
    if arguments.action == "test":
        sys.exit(run_tests(load()))
    # Standard output is the class path alone.
    with contextlib.redirect_stdout(sys.stderr):
        classpath = host_classpath(load(), arguments.tests)
    print(os.pathsep.join(map(str, classpath)))


if __name__ == "__main__":
    command(main)
