"""What a file's mapping holds stays, at the same address, whatever its pages."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from pathlib import Path

import numpy as np
import pytest

from pocketdraft.runtime import huge_pages

SIZE = (5 << 20) + 4096
pytestmark = pytest.mark.skipif(not huge_pages._given(), reason="this system gives no huge pages")


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "packed" / "target"
    path.parent.mkdir()
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


def mapped(path: Path, access: int = mmap.ACCESS_READ) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0, access=access)


def files() -> str:
    return Path("/proc/self/maps").read_text()


def huge_bytes(address: int) -> int:
    """Of the mapping that holds this address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            start, end = (int(one, 16) for one in span.groups())
            inside = start <= address < end
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    raise AssertionError("nothing is mapped there")


def test_weights_stay_where_they_are_on_pages_of_their_own(file):
    view, content = mapped(file), file.read_bytes()
    address = np.frombuffer(view, np.uint8).ctypes.data
    assert huge_pages.move(file.parent) == SIZE
    assert view[:] == content == ctypes.string_at(address, SIZE)
    assert str(file) not in files()
    file.write_bytes(bytes(SIZE))
    assert view[:] == content


def test_they_are_on_huge_pages(file):
    view = mapped(file)
    start = np.frombuffer(view, np.uint8).ctypes.data
    huge_pages.move(file.parent)
    assert huge_bytes(start) >= huge_pages.HUGE
    view.close()


def test_what_is_mapped_beyond_a_file_s_end_is_left_unread(file):
    """As XNNPACK does with a file that it has cut off since: to read there ends the process."""
    view, content = mapped(file), file.read_bytes()
    whole = SIZE - (2 << 12)
    os.truncate(file, whole)
    assert huge_pages.move(file.parent) == SIZE
    assert view[:whole] == content[:whole]


def test_what_is_written_to_or_lies_elsewhere_stays_mapped(file, tmp_path):
    (tmp_path / "other").write_bytes(bytes(SIZE))
    writable, other = mapped(file, mmap.ACCESS_WRITE), mapped(tmp_path / "other")
    assert huge_pages.move(file.parent) == 0
    assert str(file) in files()
    assert str(tmp_path / "other") in files()
    writable.close()
    other.close()


@pytest.mark.parametrize(
    ("name", "bound"), [("_available", lambda: huge_pages.SPARE * SIZE - 1), ("LARGEST", SIZE - 1)]
)
def test_where_memory_is_short_or_much_is_to_be_moved_nothing_is(file, monkeypatch, name, bound):
    view = mapped(file)
    monkeypatch.setattr(huge_pages, name, bound)
    assert huge_pages.move(file.parent) == 0
    assert str(file) in files()
    view.close()
