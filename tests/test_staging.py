"""A bundle appears whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pocketdraft.export.staging import staged
from pocketdraft.runtime.errors import PocketdraftError


def test_success_leaves_the_bundle_and_nothing_else(tmp_path):
    with staged(tmp_path / "out") as work:
        (work / "bundle.json").write_text("new")
    assert (tmp_path / "out" / "bundle.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_older_bundle_is_replaced_whole(tmp_path):
    for text in ("old", "new"):
        with staged(tmp_path / "out") as work:
            (work / f"{text}.bin").write_text(text)
            (work / "bundle.json").write_text(text)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bundle.json", "new.bin"]


def test_failure_keeps_the_older_bundle(tmp_path):
    with staged(tmp_path / "out") as work:
        (work / "bundle.json").write_text("old")
    with pytest.raises(ValueError), staged(tmp_path / "out") as work:
        (work / "bundle.json").write_text("new")
        raise ValueError
    assert (tmp_path / "out" / "bundle.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_something_that_is_no_bundle_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(PocketdraftError, match="is no bundle"), staged(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    with pytest.raises(PocketdraftError, match="No space left"), staged(tmp_path / "out") as work:
        (work / "half").write_text("x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_nothing_that_opens_and_the_next_export_cleans_up(tmp_path: Path):
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from pocketdraft.export.staging import staged
        with staged(Path(sys.argv[1])) as work:
            (work / "model").write_text("half")
            print("writing", flush=True)
            time.sleep(60)
        """
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out")], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "out").exists()
    with staged(tmp_path / "out") as work:
        (work / "bundle.json").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    """The old bundle stands aside under a dead process's number; the next export puts it back first."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    aside = tmp_path / f".out.replaced-{dead.pid}"
    aside.mkdir()
    (aside / "bundle.json").write_text("old")
    with pytest.raises(ValueError), staged(tmp_path / "out"):
        raise ValueError
    assert (tmp_path / "out" / "bundle.json").read_text() == "old"


def test_a_single_file_replaces_the_older_one_and_nothing_else_appears(tmp_path):
    for text in ("old", "new"):
        with staged(tmp_path / "phone.litertlm", only="model.litertlm") as work:
            (work / "model.litertlm").write_text(text)
            (work / "bundle.json").write_text("{}")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("phone.litertlm", "new")]
