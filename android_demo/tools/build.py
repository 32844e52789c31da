"""`make apk`: everything from runtimes.toml to a signed and checked APK, and a table of what its bytes are."""

from __future__ import annotations

import json
import os
import shutil
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

from . import native
from .apk import Entry, pack
from .checks import check_apk
from .description import BUILD, DEMO, App, BuildError, Description, load
from .fetch import fetch_all
from .jvm import SHORT_LIVED, UNPACKED, android_jar, module_jar, runtime_jars
from .sources import check_sources
from .steps import command, remove, run, step

APK = BUILD / "pocketdraft-demo.apk"
ANDROID = "http://schemas.android.com/apk/res/android"
PASSWORD = "pass:android"
ABOUT = ("name", "version", "licence")  # what the app tells of each runtime


def build(description: Description) -> None:
    started = time.monotonic()
    check_sources(description)
    fetch_all(description)
    resources = resource_table(description)
    dex = dexed(description, resources)
    libraries = {abi: native.libraries(description, abi) for abi in description.app.abis}
    key = signing_key()
    files = [file for by_owner in libraries.values() for owned in by_owner.values() for file in owned]

    def make(apk: Path) -> None:
        unsigned = BUILD / "unsigned.apk"
        pack(entries(resources, dex, files), unsigned, description.app.page_size)
        sign(unsigned, key, apk, description.app.min_sdk)
        unsigned.unlink()
        check_apk(apk, description.app)

    step(APK, [resources, dex, key, *files, str(description.app)], make)
    print_sizes(libraries)
    print(f"{APK.relative_to(DEMO.parent)}: {time.monotonic() - started:.0f} s")


def resource_table(description: Description) -> Path:
    """aapt2's APK of resources and manifest alone; the names it gives them are R.java beside it."""
    app = description.app
    module = description.modules["app"]
    manifest, resources = DEMO / str(module.manifest), DEMO / str(module.resources)
    assets = [DEMO / asset for asset in module.assets]
    packed = json.dumps([{key: vars(one)[key] for key in ABOUT} for one in description.packed_runtimes()])
    framework = UNPACKED / "framework-res/usr/share/android-framework-res/framework-res.apk"

    def make(folder: Path) -> None:
        (folder / "java").mkdir(parents=True)
        (folder / "AndroidManifest.xml").write_text(merged_manifest(manifest, app))
        (folder / "assets").mkdir()
        for asset in assets:
            shutil.copy(asset, folder / "assets")
        (folder / "assets" / "runtimes.json").write_text(packed)
        run("aapt2", "compile", "--dir", resources, "-o", folder / "compiled.zip")
        run(
            *("aapt2", "link", "-o", folder / "resources.apk", "-I", framework, "--java", folder / "java"),
            *("--custom-package", app.namespace, "-A", folder / "assets"),
            *("--manifest", folder / "AndroidManifest.xml", folder / "compiled.zip"),
            *("--min-sdk-version", str(app.min_sdk), "--target-sdk-version", str(app.target_sdk)),
            *("--version-code", str(app.version_code), "--version-name", app.version_name),
            *("--compile-sdk-version-code", str(app.compile_sdk), "--compile-sdk-version-name", str(app.compile_sdk)),
            # Debian 12's aapt2 warns of a chunk in Debian 13's resources that it does not know and we do not use.
            quiet=True,
        )

    return step(BUILD / "resources", [manifest, resources, framework, *assets, packed, str(app)], make)


def merged_manifest(manifest: Path, app: App) -> str:
    """The manifest as Android's Gradle plugin would merge it: package, full names, libraries mapped from the APK."""
    ElementTree.register_namespace("android", ANDROID)
    root = ElementTree.parse(manifest).getroot()
    root.set("package", app.id)
    application = root.find("application")
    if application is None:
        raise BuildError(f"{manifest} has no <application>: an app needs one.")
    application.set(f"{{{ANDROID}}}extractNativeLibs", "false")
    for element in application.iter():
        name = element.get(f"{{{ANDROID}}}name", "")
        if name.startswith("."):
            element.set(f"{{{ANDROID}}}name", app.namespace + name)
    return ElementTree.tostring(root, encoding="unicode")


def dexed(description: Description, resources: Path) -> Path:
    """All code as dex. D8 translates and does not shrink: what JNI and Gson look up by name stays without rules."""
    app = description.app
    names = step(BUILD / "classes" / "names.jar", [resources / "java"], lambda jar: compile_names(resources, jar))
    modules = description.modules.values()
    jars = [module_jar(description, module.name, (names,) if module.android else ()) for module in modules]
    jars += [names, *runtime_jars(description.packed_runtimes())]
    d8 = UNPACKED / "d8" / description.downloads["d8"].members[0]

    def make(folder: Path) -> None:
        folder.mkdir()
        jdk = native.jni_headers()[0].parent
        run(
            *("java", *SHORT_LIVED, "-cp", str(d8), "com.android.tools.r8.D8", "--release"),
            *("--min-api", str(app.min_sdk), "--lib", str(android_jar(description)), "--lib", str(jdk)),
            *("--output", str(folder), *map(str, jars)),
            quiet=True,
        )

    return step(BUILD / "dex", [d8, *jars, str(app.min_sdk)], make)


def compile_names(resources: Path, jar: Path) -> None:
    """R.java, as a jar that Kotlin compiles against."""
    classes = jar.with_suffix(".classes")
    remove(classes)
    run("javac", "-nowarn", "--release", "11", "-d", classes, *(resources / "java").rglob("*.java"))
    with zipfile.ZipFile(jar, "w") as out:
        for file in sorted(classes.rglob("*.class")):
            out.write(file, file.relative_to(classes))


def entries(resources: Path, dex: Path, libraries: list[Path]) -> list[Entry]:
    with zipfile.ZipFile(resources / "resources.apk") as linked:
        found = [Entry(name, linked.read(name)) for name in linked.namelist()]
    found += [Entry(file.name, file.read_bytes()) for file in sorted(dex.glob("*.dex"))]
    return found + [Entry(f"lib/{file.parent.name}/{file.name}", file.read_bytes()) for file in libraries]


def signing_key() -> Path:
    """A debug key of this checkout: never committed, for trying the app and nothing else."""

    def make(store: Path) -> None:
        run(
            *("keytool", "-genkeypair", "-keystore", store, "-storepass", PASSWORD.removeprefix("pass:")),
            *("-alias", "debug", "-keyalg", "RSA", "-keysize", "2048", "-validity", "10000", "-dname", "CN=debug"),
            quiet=True,
        )

    store = BUILD / "debug.keystore"
    if not store.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        partial = store.with_name("partial.keystore")
        partial.unlink(missing_ok=True)
        make(partial)
        os.replace(partial, store)
    return store


def sign(unsigned: Path, key: Path, apk: Path, min_sdk: int) -> None:
    run(
        *("apksigner", "sign", "--ks", key, "--ks-pass", PASSWORD, "--min-sdk-version", str(min_sdk)),
        *("--v1-signing-enabled", "false", "--v2-signing-enabled", "true", "--v3-signing-enabled", "true"),
        *("--v4-signing-enabled", "false", "--out", apk, unsigned),
    )


def print_sizes(libraries: dict[str, dict[str, list[Path]]]) -> None:
    """What the APK's bytes are, as they lie in it."""
    with zipfile.ZipFile(APK) as packed:
        sizes = {info.filename: info.compress_size for info in packed.infolist()}
    rows = {
        "code (dex)": sum(size for name, size in sizes.items() if name.endswith(".dex")),
        "resources": sum(size for name, size in sizes.items() if not name.endswith((".dex", ".so"))),
    }
    for abi, owners in libraries.items():
        for owner, files in owners.items():
            rows[f"{owner}, {abi}"] = sum(sizes[f"lib/{abi}/{file.name}"] for file in files)
    rows["total, signed"] = APK.stat().st_size
    for part, size in rows.items():
        print(f"{part:<36}{size / 1e6:>10.3f} MB")


if __name__ == "__main__":
    command(lambda: build(load()))
