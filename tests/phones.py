"""A scripted adb: a shell on a folder that stands for the phone."""

from __future__ import annotations

import json
import os
from pathlib import Path

from scripted import scripted_manifest

from pocketdraft.runtime.manifest import FileEntry, sha256

# Runs shell commands under the phone's root; `fail` and `damage` count down pushes to the one that goes wrong.
ADB = """#!/bin/sh
phone={phone}
if [ "$1" = "devices" ]; then printf 'List of devices attached\\n'; cat $phone/devices; exit 0; fi
[ "$1" = "-s" ] && shift 2
case "$1" in
shell)
    shift
    here="s|/data/local/tmp|$phone/root|g; s|/sdcard|$phone/sdcard|g; s|df -k .*|cat $phone/df|"
    cd $phone/root && PATH=$phone/bin:$PATH sh -c "$(echo "$*" | sed "$here")" ;;
push)
    for trouble in fail damage; do
        if [ -f $phone/$trouble ]; then
            left=$(($(cat $phone/$trouble) - 1)); echo $left > $phone/$trouble
            [ $left -eq 0 ] && [ $trouble = fail ] && {{ echo 'adb: error: device offline' >&2; exit 1; }}
            [ $left -eq 0 ] && echo x >> "$2"
        fi
    done
    cp "$2" "$(echo "$3" | sed "s|/data/local/tmp|$phone/root|")"; echo "$2" >> $phone/pushed ;;
esac
"""


class Phone:
    """Scripts in `bin` are the phone's own commands: `am`, `pm`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, folder / "root" / "pocketdraft" / "my bundle"
        (folder / "root").mkdir(parents=True)
        (folder / "bin").mkdir()
        (folder / "bin" / "adb").write_text(ADB.format(phone=folder))
        (folder / "bin" / "adb").chmod(0o755)
        self.say("devices", "emulator-1\tdevice\n")
        self.say("df", "Filesystem 1K-blocks Used Available Use% Mounted\n/data 9999999 1 9999999 1% /data\n")

    def say(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def pushes(self) -> int:
        log = self.folder / "pushed"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def script(self, name: str, lines: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{lines}")
        path.chmod(0o755)


def make_bundle(folder: Path) -> Path:
    """Files of some pieces each, and a manifest that lists them."""
    folder.mkdir()
    (folder / "model.litertlm").write_bytes(os.urandom(4500))
    (folder / "tokenizer.json").write_bytes(b"{}")
    content = json.loads(scripted_manifest().dump())
    names = ("model.litertlm", "tokenizer.json")
    content["files"] = {
        name: FileEntry(sha256=sha256(folder / name), size=(folder / name).stat().st_size).model_dump()
        for name in names
    }
    for part in content["parts"].values():
        part |= {"file": "model.litertlm", "offset": 0, "size": 1}
    (folder / "bundle.json").write_text(json.dumps(content))
    return folder
