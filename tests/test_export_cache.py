from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import WIDTHS

from pocketdraft.export.cache import Cache, key_of
from pocketdraft.runtime.errors import PocketdraftError

KEYS = [key_of(index) for index in range(4)]


def write(content: bytes):
    return lambda path: path.write_bytes(content)


def read(cache: Cache, key: str, content: bytes) -> bytes:
    with cache.open(key, write(content)) as file:
        return file.read()


def files(cache: Cache) -> set[str]:
    return {path.name for path in cache.folder.glob("??/*")}


def refuse(path: Path) -> None:
    raise AssertionError("made again")


def test_what_is_there_is_not_made_again(tmp_path):
    cache = Cache(tmp_path, 10**6)
    assert read(cache, KEYS[0], b"first") == b"first"
    with cache.open(KEYS[0], refuse) as file:
        assert file.read() == b"first"


def test_the_least_recently_used_goes_first(tmp_path):
    cache = Cache(tmp_path, 250)
    for age, key in enumerate(KEYS[:3]):
        read(cache, key, bytes(100))
        path = tmp_path / key[:2] / key
        os.utime(path, (1000 + age, 1000 + age))
    read(cache, KEYS[0], b"")  # used now, so the second is the oldest
    cache.trim()
    assert files(cache) == {KEYS[0], KEYS[2]}


def test_a_file_that_another_export_trims_stays_open_and_is_made_again(tmp_path):
    cache, greedy = Cache(tmp_path, 10**6), Cache(tmp_path, 0)
    with cache.open(KEYS[0], write(b"content")) as file:
        greedy.trim()
        assert files(cache) == set()
        assert file.read() == b"content"
    assert read(cache, KEYS[0], b"content") == b"content"


def test_a_maker_that_fails_leaves_nothing(tmp_path):
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    cache = Cache(tmp_path, 10**6)
    with pytest.raises(PocketdraftError, match=r"Cannot write the cache .*: No space left on device; free space, or"):
        cache.open(KEYS[0], fail)
    assert files(cache) == set()


def test_a_cache_that_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PocketdraftError, match=r"Cannot write the cache .*file: Not a directory.*POCKETDRAFT_CACHE"):
        Cache(tmp_path / "file", 10**6).open(KEYS[0], write(b""))


def test_what_a_killed_export_left_half_written_is_cleared(tmp_path):
    code = (
        "import sys, os, signal; from pathlib import Path; from pocketdraft.export.cache import Cache\n"
        "def make(path):\n    path.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "Cache(Path(sys.argv[1]), 10**6).open(sys.argv[2], make)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path), KEYS[0]], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    cache = Cache(tmp_path, 10**6)
    assert len(files(cache)) == 1  # the half, under another name
    assert read(cache, KEYS[0], b"whole") == b"whole"
    cache.trim()
    assert files(cache) == {KEYS[0]}


def _export(folder: Path, failures) -> None:
    cache = Cache(folder, 150)  # smaller than what is made: others' files vanish all the time
    for turn in range(200):
        number = turn % 4
        if read(cache, KEYS[number], bytes([number]) * 100) != bytes([number]) * 100:
            failures.put(number)
        cache.trim()


def test_exports_at_the_same_time_share_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    failures = context.Queue()
    workers = [context.Process(target=_export, args=(tmp_path, failures)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert failures.empty()


@pytest.mark.parametrize("said", ["much", "-1", "inf"])
def test_a_bound_that_is_no_size_is_refused(monkeypatch, said):
    monkeypatch.setenv("POCKETDRAFT_CACHE_GB", said)
    with pytest.raises(PocketdraftError, match=f"POCKETDRAFT_CACHE_GB is '{said}'; give a size in GB"):
        Cache.default()


def test_a_key_does_not_depend_on_the_process():
    """A set of strings is ordered by a seed of the process; these two order the two kinds of layers apart."""
    script = (
        "from pocketdraft.export.models.gemma4 import Geometry; from pocketdraft.export.tiny import configs\n"
        "print(Geometry.from_config(configs.target_config()))"
    )
    seeds = [os.environ | {"PYTHONHASHSEED": seed} for seed in ("0", "2")]
    runs = [subprocess.run([sys.executable, "-c", script], env=seed, capture_output=True, text=True) for seed in seeds]
    assert "rope=" in runs[0].stdout
    assert len({run.stdout for run in runs}) == 1


def test_another_recipe_converts_nothing_again(make_bundle, make_pair, tmp_path, monkeypatch):
    from pocketdraft.export.backends import litert
    from pocketdraft.export.pipeline import build
    from pocketdraft.export.plan import Plan, Recipes
    from pocketdraft.quantize.recipe import load

    make_bundle("shared", "f32")
    monkeypatch.setattr(litert, "lower", lambda steps, path: refuse(path))
    pair, recipe = make_pair("shared"), load("w8")
    build([Plan(pair.target, (pair.drafter,), tmp_path / "out", Recipes(recipe, recipe, recipe), **WIDTHS)])
    with pytest.raises(AssertionError, match="made again"):  # and this is no accident
        widths = WIDTHS | {"context": 80}
        build([Plan(pair.target, (pair.drafter,), tmp_path / "other", Recipes(recipe, recipe, recipe), **widths)])
