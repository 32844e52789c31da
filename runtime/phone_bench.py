"""The demo app's benchmark, started over adb: its profile is the phone's own.

The app is asked by an intent with the bundle's name and the run's, tells its state in RUN.status.json and writes
RUN.profile.json, in the one folder of its own that adb may read.
"""

from __future__ import annotations

import json
import secrets
import shlex
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .adb import Phone
from .errors import PocketdraftError, first_fault
from .manifest import MANIFEST_NAME, Manifest, read, sha256
from .profile import Profile, files_digest
from .push import PLACE, Progress

APP = "dev.pocketdraft.demo"
ACTIVITY = f"{APP}/pocketdraft.app.MainActivity"
RESULTS = f"/sdcard/Android/data/{APP}/files/results"
POLL_S = 2.0
SILENT_S = 600.0  # a prompt on a slow phone, and then some


def phone_bench(bundle: Path, serial: str | None, progress: Progress) -> Profile:
    """The phone's profile of a bundle that was pushed to it. Raises PocketdraftError; Ctrl-C ends the app's run too."""
    manifest, name, phone = read(bundle), bundle.resolve().name, Phone(serial)
    if not phone.shell(f"pm path {APP} || true").strip():
        raise PocketdraftError(f"The phone has no {APP}; install the demo first: make apk, then adb install.")
    if phone.sha256(f"{PLACE}/{name}/{MANIFEST_NAME}") != sha256(bundle / MANIFEST_NAME):
        raise PocketdraftError(f"The phone's {PLACE}/{name} is not {bundle}; push it first: pocketdraft push {bundle}.")
    run = secrets.token_hex(8)
    phone.shell(f"am start -n {ACTIVITY} --es benchmark {shlex.quote(name)} --es run {run}")
    try:
        _await(phone, run, progress)
        return _profile(phone.read(f"{RESULTS}/{run}.profile.json"), manifest)
    except KeyboardInterrupt:
        phone.shell(f"am force-stop {APP}")
        raise
    finally:
        phone.shell(f"rm -f {RESULTS}/{run}.*")


def _await(phone: Phone, run: str, progress: Progress) -> None:
    last, since = "", time.monotonic()
    while True:
        said = phone.read(f"{RESULTS}/{run}.status.json")
        status = _status(said)
        if status["state"] == "failed":
            raise PocketdraftError(f"The app says: {status['message']}")
        progress("Measuring on the phone", int(100 * status["share"]), 100)
        if status["state"] == "done":
            return
        if said != last:
            last, since = said, time.monotonic()
        elif time.monotonic() - since > SILENT_S:
            raise PocketdraftError(
                f"The app has said nothing for {SILENT_S:.0f} s; unlock the phone, start again with the app in front."
            )
        time.sleep(POLL_S)


def _status(said: str) -> dict[str, Any]:
    """Nothing yet, or half a file, is a run that begins."""
    try:
        found = json.loads(said)
    except ValueError:
        found = {}
    return {"state": "running", "share": 0.0, "message": ""} | (found if isinstance(found, dict) else {})


def _profile(text: str, manifest: Manifest) -> Profile:
    try:
        profile = Profile.model_validate_json(text)
    except ValidationError as error:
        raise PocketdraftError(
            f"The app's profile is damaged at {first_fault(error)}; install this pocketdraft's demo, start again."
        ) from error
    if profile.bundle_sha256 != files_digest(manifest):
        raise PocketdraftError("The app measured another bundle than this one; push this one and start again.")
    return profile
