"""The real command in a process of its own: one sentence, exit status 2, no traceback, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

COMMAND = Path(sys.executable).with_name("pocketdraft")


def call(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(COMMAND), *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False, **options
    )


def refusal(*arguments: object, **options: object) -> str:
    """The one sentence of a command that must refuse."""
    done = call(*arguments, **options)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("pocketdraft: ")
    return sentence


@pytest.fixture
def bundle(make_bundle, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(make_bundle("shared", "f32"), tmp_path / "bundle"))


@pytest.fixture
def checkpoints(make_pair, tmp_path: Path) -> Path:
    pair = make_pair("shared")
    shutil.copytree(pair.target, tmp_path / "target")
    shutil.copytree(pair.drafter, tmp_path / "drafter")
    return tmp_path


def export(checkpoints: Path, **options: object) -> list[object]:
    extra = [part for name, value in options.items() for part in (f"--{name}", value)]
    out = checkpoints / "out"
    return ["export", "--target", checkpoints / "target", "--drafter", checkpoints / "drafter", "--out", out, *extra]


def edit_manifest(bundle: Path, **fields: object) -> None:
    path = bundle / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def no_config(folder: Path) -> None:
    (folder / "target" / "config.json").unlink()


def truncate(folder: Path) -> None:
    path = folder / "target" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-500])


def not_finite(folder: Path) -> None:
    weights = load_file(folder / "target" / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, folder / "target" / "model.safetensors")


def another_window(folder: Path) -> None:
    path = folder / "drafter" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["sliding_window"] = 512
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_config, "is no checkpoint"),
        (truncate, "model.safetensors is damaged"),
        (not_finite, "weight model.norm.weight holds NaN"),
        (another_window, "sliding window 512"),
    ],
)
def test_export_refuses_a_bad_pair_and_leaves_nothing(checkpoints, spoil, says):
    spoil(checkpoints)
    assert says in refusal(*export(checkpoints))
    assert sorted(path.name for path in checkpoints.iterdir()) == ["drafter", "target"]


def test_export_refuses_an_unknown_recipe_with_the_near_match(checkpoints):
    assert "did you mean 'mixed'" in refusal(*export(checkpoints, recipe="mixde"))


@pytest.mark.parametrize(
    ("option", "value"), [("prefill", "abc"), ("drafts", "0"), ("prefill", "8,8"), ("context", "4")]
)
def test_export_refuses_impossible_widths(checkpoints, option, value):
    assert option in refusal(*export(checkpoints, **{option: value})) or option == "drafts"
    assert not (checkpoints / "out").exists()


def test_export_refuses_a_centroid_head_that_the_checkpoint_lacks(make_pair, tmp_path):
    pair = make_pair("dense")
    command = ["export", "--target", pair.target, "--drafter", pair.drafter, "--out", tmp_path / "out"]
    assert "has a dense head only" in refusal(*command, "--head", "centroid")
    assert not list(tmp_path.iterdir())


def test_export_refuses_to_overwrite_what_is_no_bundle(checkpoints):
    (checkpoints / "out").mkdir()
    (checkpoints / "out" / "thesis.tex").write_text("mine")
    assert "is no bundle" in refusal(*export(checkpoints))


def test_export_under_a_file_is_one_sentence(checkpoints):
    (checkpoints / "out").write_text("a file")
    assert "out" in refusal(*export(checkpoints)[:-1], checkpoints / "out" / "deeper")


def test_export_on_a_full_disk_is_one_sentence_and_leaves_nothing(checkpoints):
    disk = checkpoints / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        assert "4 MB are free" in refusal(*export(checkpoints), "--out", disk / "out")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def interruptible() -> None:
    """A runner that itself runs in the background hands an ignored SIGINT down to its children."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupted_export_leaves_nothing_and_shows_no_traceback(checkpoints):
    child = subprocess.Popen(
        [str(COMMAND), *map(str, export(checkpoints))], stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    )
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("Lowering"):
            break
    time.sleep(1)
    os.killpg(child.pid, signal.SIGINT)
    rest = child.stderr.read()
    assert child.wait(60) == 130
    assert "Traceback" not in rest
    assert sorted(path.name for path in checkpoints.iterdir()) == ["drafter", "target"]


def test_a_changed_byte_is_refused_and_its_file_named(bundle):
    path = bundle / "model.litertlm"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "model.litertlm is not the file that was exported" in refusal("run", bundle, "--prompt", "a")


@pytest.mark.parametrize("command", [("validate",), ("inspect",), ("run", "--prompt", "a"), ("bench",)])
def test_every_command_refuses_a_newer_format(bundle, command):
    edit_manifest(bundle, format_version=99)
    assert "format version 99" in refusal(command[0], bundle, *command[1:])


def test_a_path_that_leaves_the_bundle_is_refused(bundle):
    edit_manifest(bundle, files={"../target.bin": {"sha256": "", "size": 1}})
    assert "leaves the bundle" in refusal("inspect", bundle)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt", ""], "prompt is empty"),
        (["--prompt", "word " * 400], "context holds 96"),
        (["--prompt", "a", "--max-tokens", "0"], "budget is 0"),
        (["--prompt", "a", "--drafter", "mpt"], "did you mean 'mtp'"),
    ],
)
def test_run_refuses(make_bundle, arguments, says):
    assert says in refusal("run", make_bundle("shared", "f32"), *arguments)


def test_validate_wants_both_checkpoints_or_none(make_bundle, make_pair):
    bundle = make_bundle("shared", "f32")
    assert "Only one of --target and --drafter" in refusal("validate", bundle, "--target", make_pair("shared").target)


def test_validate_refuses_checkpoints_of_another_pair(make_bundle, make_pair):
    other = make_pair("dense")
    said = refusal("validate", make_bundle("shared", "f32"), "--target", other.target, "--drafter", other.drafter)
    assert "is not the checkpoint that the bundle was made of" in said


def test_a_prompt_file_that_is_missing_is_named(make_bundle, tmp_path):
    assert "none.jsonl" in refusal("bench", make_bundle("shared", "f32"), "--prompts", tmp_path / "none.jsonl")


def test_json_is_one_document_and_nothing_else_is_printed(make_bundle, make_pair):
    bundle, pair = make_bundle("shared", "f32"), make_pair("shared")
    few = ("--per-domain", 1, "--max-tokens", 8)
    for command in (
        ("inspect", bundle),
        ("run", bundle, "--prompt", "import", "--max-tokens", 8),
        ("bench", bundle, *few),
        ("validate", bundle, "--target", pair.target, "--drafter", pair.drafter, *few),
    ):
        done = call(*command, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        json.loads(done.stdout)


def test_version():
    assert call("--version").stdout.startswith("pocketdraft 0.")


def test_a_reader_that_goes_away_is_no_error(make_bundle):
    line = f"{COMMAND} run {make_bundle('shared', 'f32')} --prompt import --quiet | head -c 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
