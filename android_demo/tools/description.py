"""The description that both builds read, runtimes.toml, and the folders that everything here works in."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEMO = Path(__file__).resolve().parents[1]
BUILD = DEMO.parent / "build" / "android"


class BuildError(Exception):
    """What the user can mend: one plain sentence."""


@dataclass(frozen=True)
class App:
    id: str
    namespace: str
    version_name: str
    version_code: int
    min_sdk: int
    target_sdk: int
    compile_sdk: int
    abis: list[str]
    page_size: int
    jvm_target: str
    permissions: list[str]
    cpp_standard: int


@dataclass(frozen=True)
class Module:
    name: str
    android: bool
    kotlin: str
    modules: list[str]
    runtimes: list[str]
    tests: str | None = None
    cpp: str | None = None
    resources: str | None = None
    manifest: str | None = None
    assets: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Shim:
    """A native library of ours, linked with a runtime's."""

    name: str
    module: str
    sources: list[str]
    runtime: str | None = None


@dataclass(frozen=True)
class Runtime:
    name: str
    version: str
    licence: str
    maven: str | None = None
    jars: list[str] = field(default_factory=list)
    libraries: list[str] = field(default_factory=list)
    sonames: dict[str, str] = field(default_factory=dict)
    include: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Download:
    """A package of one of npm, PyPI, Debian or Debian's sources, and the files of it that are kept."""

    name: str
    sha256: str
    members: list[str]
    npm: str | None = None
    pypi: str | None = None
    platform: str | None = None
    debian: str | None = None
    debian_source: str | None = None


@dataclass(frozen=True)
class Description:
    app: App
    modules: dict[str, Module]
    shims: dict[str, Shim]
    runtimes: dict[str, Runtime]
    downloads: dict[str, Download]

    def packed_runtimes(self) -> list[Runtime]:
        """What some module needs at run time, and Kotlin's own library, in the order of the file."""
        needed = {"kotlin-stdlib"}.union(*(module.runtimes for module in self.modules.values()))
        return [runtime for runtime in self.runtimes.values() if runtime.name in needed]


def load(path: Path = DEMO / "runtimes.toml") -> Description:
    """Reads runtimes.toml; a key that no field has, or a field without its key, is refused by name."""
    tree = tomllib.loads(path.read_text())

    def table(kind: type, name: str) -> dict[str, Any]:
        try:
            return {key: kind(name=key, **values) for key, values in tree[name].items()}
        except (KeyError, TypeError) as error:
            raise BuildError(f"{path.name}: [{name}] does not read: {error}") from error

    try:
        app = App(**tree["app"])
    except (KeyError, TypeError) as error:
        raise BuildError(f"{path.name}: [app] does not read: {error}") from error
    return Description(
        app,
        table(Module, "modules"),
        table(Shim, "shims"),
        table(Runtime, "runtimes"),
        table(Download, "downloads"),
    )
