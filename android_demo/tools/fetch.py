"""Downloads what runtimes.toml names, checks it, and unpacks the files that the build uses.

Each download is renamed into place only when its hash is right, and each unpacked folder only when it is whole, so
that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from .description import BUILD, BuildError, Description, Download

APT_HELPER = "/usr/lib/apt/apt-helper"


def fetch(download: Download, folder: Path = BUILD) -> Path:
    """The folder with the download's members, made unless it is there."""
    unpacked = folder / "unpacked" / download.name
    stamp = unpacked / ".sha256"
    wanted = "\n".join([download.sha256, *download.members])
    if stamp.is_file() and stamp.read_text() == wanted:
        return unpacked
    archive = archived(download, folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix="unpack-") as scratch:
        fresh = Path(scratch) / download.name
        fresh.mkdir()
        unpack(archive, fresh, download.members)
        (fresh / ".sha256").write_text(wanted)
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        os.replace(fresh, unpacked)
    return unpacked


def archived(download: Download, folder: Path) -> Path:
    """The downloaded archive, whose SHA-256 is the described one."""
    home = folder / "downloads" / download.name
    for present in home.glob("*"):
        if sha256(present) == download.sha256:
            return present
        present.unlink()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as scratch:
        print(f"fetching {what(download)}", flush=True)
        arrived = transfer(download, Path(scratch))
        check(arrived, download)
        os.replace(arrived, home / arrived.name)
    return home / arrived.name


def check(archive: Path, download: Download) -> None:
    found = sha256(archive)
    if found != download.sha256:
        raise BuildError(
            f"{what(download)} came with SHA-256 {found}, but runtimes.toml says {download.sha256}: fetch it again, "
            f"or put the new hash into [downloads.{download.name}] if the change is meant."
        )


def what(download: Download) -> str:
    return download.npm or download.pypi or download.debian or download.debian_source or download.name


def transfer(download: Download, folder: Path) -> Path:
    """Brings the archive with the client of its registry."""
    if download.npm:
        client("npm", "pack", "--silent", "--pack-destination", str(folder), download.npm)
    elif download.pypi:
        platform = ["--platform", download.platform] if download.platform else []
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        client(*pip, "--only-binary=:all:", *platform, "--dest", str(folder), download.pypi)
    else:
        transfer_debian(download, folder)
    arrived = list(folder.iterdir())
    if len(arrived) != 1:
        raise BuildError(f"{what(download)} came as {len(arrived)} files where one archive was expected.")
    return arrived[0]


def transfer_debian(download: Download, folder: Path) -> None:
    """apt says where the package is, and fetches that one file: of a source package, what its authors published."""
    request = ["download", str(download.debian)]
    if download.debian_source:
        request = ["source", "--only-source", download.debian_source]
    listing = client("apt-get", *apt_options(), "-qq", *request, "--print-uris")
    for address, name, *_ in map(shlex.split, listing.splitlines()):
        if download.debian or ".orig.tar" in name:
            client(APT_HELPER, *apt_options(), "-qq", "download-file", address, str(folder / name))
            return
    raise BuildError(f"apt has no {what(download)}: Debian 12 and 13 must be reachable from this machine's mirror.")


@functools.cache
def apt_options() -> tuple[str, ...]:
    """An apt of our own under the build folder: Debian 12 and 13, sources too, both architectures; needs no root."""
    described = ["$(REPO_URI)", "Created-By: Packages", "Codename: bookworm", "Component: main"]
    mirror = client("apt-get", "indextargets", "--format", *described).splitlines()
    if not mirror:
        raise BuildError("make apk needs apt with Debian 12 (bookworm) among its sources.")
    state = BUILD / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    suites = [("deb", "bookworm"), ("deb", "trixie"), ("deb-src", "trixie")]
    sources = [f"{kind} {signed} {mirror[0]} {suite} main\n" for kind, suite in suites]
    (state / "sources.list").write_text("".join(sources))
    settings = {
        "APT::Architectures": "amd64,arm64",
        "APT::Sandbox::User": "root",
        "Dir::Etc::SourceList": f"{state}/sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": f"{state}",
        "Dir::State::status": f"{state}/status",
        "Dir::Cache": f"{state}/cache",
    }
    options = tuple(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))
    client("apt-get", *options, "-qq", "update")
    return options


def client(*command: str) -> str:
    """Runs a registry's client; its last line of complaint is ours."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is not on this machine: install it, make apk fetches with it.") from error
    except subprocess.CalledProcessError as error:
        complaint = (error.stderr.strip() or error.stdout.strip() or "it said nothing").splitlines()[-1]
        raise BuildError(f"{shlex.join(command)} failed: {complaint}") from error


def unpack(archive: Path, folder: Path, members: list[str]) -> None:
    """Copies the members that match one of the patterns out of a wheel, an .aar, a tarball or a Debian package."""

    def kept(name: str) -> bool:
        return any(fnmatch.fnmatch(name.removeprefix("./"), pattern) for pattern in members)

    if archive.suffix in (".whl", ".aar"):
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder, [name for name in wheel.namelist() if kept(name)])
    elif archive.suffix == ".deb":
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            tarball = Path(scratch) / "data.tar"
            with tarball.open("wb") as out:
                subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], check=True, stdout=out)
            untar(tarball, folder, kept)
    else:
        untar(archive, folder, kept)
    if not any(folder.iterdir()):
        raise BuildError(f"{archive.name} holds none of {', '.join(members)}: runtimes.toml and the package disagree.")
    for aar in list(folder.rglob("*.aar")):
        unpack(aar, aar.with_name(aar.name + ".unpacked"), ["*"])


def untar(tarball: Path, folder: Path, kept: Callable[[str], bool]) -> None:
    with tarfile.open(tarball) as tar:
        tar.extractall(folder, [member for member in tar if kept(member.name)], filter="data")


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fetch_all(description: Description) -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    for download in description.downloads.values():
        fetch(download)
