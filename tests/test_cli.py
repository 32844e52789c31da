"""The real command in a process of its own: bad input gets one sentence and status 2, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketdraft.export.tiny import PROMPTS_FILE

COMMAND = Path(sys.executable).with_name("pocketdraft")
SMALL = ("--recipe", "f32", "--context", "32", "--prefill", "8", "--drafts", "1")
FEW = ("--per-domain", "1", "--max-tokens", "4")
# Buffered output, as users have it: what fails at exit only must be seen.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def call(*arguments: object, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    line = [str(COMMAND), *map(str, arguments)]
    return subprocess.run(line, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=300, env=ENVIRONMENT)


def refusal(command: str, *arguments: object) -> str:
    """The one sentence, and no more, of a command that must refuse."""
    quiet = [] if command == "inspect" else ["--quiet"]
    done = call(command, *arguments, *quiet)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("pocketdraft: ")
    return sentence


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(os.listdir(folder))


def running(pid: str) -> bool:
    """Zombies, which nobody may be there to reap, have ended."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout
    return state.strip()[:1] not in ("", "Z")


@pytest.fixture
def pair(make_pair, tmp_path: Path) -> Path:
    """A folder with copies `target` and `drafter` that a test may spoil."""
    made = make_pair("shared")
    for folder in (made.target, made.drafter):
        shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path


@pytest.fixture
def whole(make_bundle) -> Path:
    """The bundle that all tests of this session share: not to be changed."""
    return Path(make_bundle("shared", "f32"))


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def export(pair: Path, out: Path, *more: object) -> list[object]:
    return ["export", "--target", pair / "target", "--drafter", pair / "drafter", "--out", out, *SMALL, *more]


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# --- export


def no_config(pair: Path) -> None:
    (pair / "target" / "config.json").unlink()


def truncate(pair: Path) -> None:
    path = pair / "target" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-500])


def not_finite(pair: Path) -> None:
    weights = load_file(pair / "target" / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, pair / "target" / "model.safetensors")


def of_another_target(pair: Path) -> None:
    edit(pair / "drafter" / "config.json", backbone_hidden_size=256)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_config, "target is no checkpoint"),
        (truncate, "target/model.safetensors is damaged"),
        (not_finite, "weight model.norm.weight holds NaN"),
        (of_another_target, "backbone hidden size 256, the target"),
    ],
)
def test_export_refuses_a_bad_pair_and_leaves_nothing(pair, spoil, says):
    spoil(pair)
    assert says in refusal(*export(pair, pair / "out"))
    assert names(pair) == ["drafter", "target"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--recipe", "mixde"], "no recipe 'mixde'; did you mean 'mixed'?"),
        (["--drafter-recipe", "int4"], "no recipe 'int4'; give one of f32, mixed, w4, w4e2, w8"),
        (["--recipe", "own.toml"], "no recipe 'own.toml'"),
        (["--prefill", "abc"], "--prefill is 'abc'"),
        (["--prefill", "8,8"], "--prefill is '8,8'"),
        (["--prefill", "8,"], "--prefill is '8,'"),
        (["--drafts", "0"], "--drafts is '0'"),
        (["--drafts", "-3"], "--drafts is '-3'"),
        (["--context", "4"], "--context is 4, a graph is 8 tokens wide"),
        (["--device", "gpu", "--backend", "onnx"], "--device is gpu, --backend is onnx; only LiteRT's graphs run"),
        (["--device", "gpu", "--backend", "executorch"], "--device is gpu, --backend is executorch; only LiteRT's"),
        (["--device", "gpu", "--backend", "all"], "--device is gpu, --backend is all; only LiteRT's graphs run"),
        (["--device", "gpu", "--head", "centroid"], "--device is gpu, --head is centroid, whose gather and scatter"),
    ],
)
def test_export_refuses_an_option_before_it_loads_torch(tmp_path, options, says):
    started = time.perf_counter()
    assert says in refusal(*export(tmp_path, tmp_path / "out", *options))
    assert time.perf_counter() - started < 2.5
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mix", "--bits", "5", "--out", "own"], "--out is own, recipes are .toml files; give own.toml."),
        (["mix", "--bits", "5", "--out", "own.toml", "--recipe", "w5"], "no recipe 'w5'"),
        (["calibrate", "--out", "taken"], "taken exists and is no calibrated target"),
        (["calibrate", "--out", "new", "--target", "taken"], "taken is no checkpoint: it has no config.json"),
    ],
)
def test_what_prepares_an_export_refuses_bad_input_and_leaves_nothing(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("mine")
    assert says in refusal(*arguments, "--texts", PROMPTS_FILE)
    assert names(tmp_path) == ["taken"]


def test_plan_reads_no_weights_and_says_so_of_a_recipe_that_does():
    done = call("plan", "--size", "e2b", "--recipe", "own")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--recipe is own, which looks at weights; plan reads none" in done.stderr


@pytest.mark.parametrize("out", ["out", "out.litertlm"])
def test_export_does_not_overwrite_what_is_no_bundle(tmp_path, out):
    (tmp_path / out).mkdir()
    (tmp_path / out / "thesis.tex").write_text("mine")
    assert f"{out} exists and is no bundle" in refusal(*export(tmp_path, tmp_path / out))
    assert names(tmp_path / out) == ["thesis.tex"]


@pytest.mark.parametrize("out", ["file/out", "file/deeper/out", "file/out.litertlm"])
def test_export_under_a_file_names_the_file(tmp_path, out):
    (tmp_path / "file").write_text("mine")
    assert f"{tmp_path / 'file'} is no folder" in refusal(*export(tmp_path, tmp_path / out))
    assert (tmp_path / "file").read_text() == "mine"


def test_export_on_a_full_disk_says_what_it_needs_and_leaves_nothing(make_pair, tmp_path):
    pair = make_pair("shared").target.parent
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path], capture_output=True)
    if mount.returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        assert f"in {tmp_path}, 4 MB are free there; free space" in refusal(*export(pair, tmp_path / "out"))
        assert names(tmp_path) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_in_the_converter_is_one_sentence(make_pair, tmp_path, tmp_path_factory, monkeypatch):
    """The converter ends its process when it cannot write; a limit on file sizes stands in for the disk.

    It is more than any weight takes, and less than the graphs do.
    """
    monkeypatch.setenv("POCKETDRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
    command = map(str, export(make_pair("shared").target.parent, tmp_path / "out", "--quiet", "--recipe", "w8"))
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 400; exec "$0" "$@"', COMMAND, *command], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = done.stderr.splitlines()
    assert "The converter ended with status 1 (LLVM ERROR: IO failure on output stream: File too large)" in sentence
    assert names(tmp_path) == []


def test_the_converter_ends_with_a_killed_export(make_pair, tmp_path):
    command = export(make_pair("shared").target.parent, tmp_path / "out")
    with subprocess.Popen([str(COMMAND), *map(str, command)], stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        while not child.stderr.readline().startswith("Lowering"):
            assert child.poll() is None
        (partial,) = names(tmp_path)
        child.kill()
    converter = partial.rpartition("-")[2]
    deadline = time.monotonic() + 5
    while running(converter) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running(converter)
    assert names(tmp_path) == [partial]


def test_an_interrupted_export_ends_at_once_and_leaves_nothing(make_pair, tmp_path, tmp_path_factory):
    command = [str(COMMAND), *map(str, export(make_pair("shared").target.parent, tmp_path / "out"))]
    cold = os.environ | {"POCKETDRAFT_CACHE": str(tmp_path_factory.mktemp("cold"))}  # else it is done in no time
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=cold) as child:
        assert child.stderr is not None
        while not child.stderr.readline().startswith("Lowering"):
            assert child.poll() is None
        time.sleep(0.5)
        assert [name.rpartition("-")[0] for name in names(tmp_path)] == [".out.partial"]
        child.send_signal(signal.SIGINT)
        rest = child.stderr.read()
        assert child.wait() == 130
    assert len(rest.splitlines()) <= 1
    assert "Traceback" not in rest
    assert names(tmp_path) == []


@pytest.mark.slow
def test_a_litertlm_is_one_file_that_litert_lm_opens(make_pair, tmp_path):
    from pocketdraft.runtime import litert_lm

    done = call(*export(make_pair("shared").target.parent, tmp_path / "phone.litertlm"), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path) == ["phone.litertlm"]
    assert json.loads(done.stdout)["out"] == str(tmp_path / "phone.litertlm")
    if not litert_lm.installed():
        pytest.skip("litert-lm-api is not installed")
    for speculate in (False, True):
        assert litert_lm.run(tmp_path / "phone.litertlm", ["import"], 8, speculate).tokens[0] > 0


# --- bundles


@pytest.mark.parametrize("name", ["model.litertlm", "tokenizer.json"])
def test_a_changed_byte_is_refused_and_its_file_named(bundle, name):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    assert f"bundle/{name} is not the file that was exported" in refusal("run", bundle, "--prompt", "a")


@pytest.mark.parametrize("command", [["validate"], ["inspect"], ["run", "--prompt", "a"], ["bench"]])
def test_every_command_refuses_a_newer_format(bundle, command):
    edit(bundle / "bundle.json", format_version=99, news="a field that this version does not know")
    assert "bundle/bundle.json has format version 99" in refusal(command[0], bundle, *command[1:])


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret"])
def test_a_path_that_leaves_the_bundle_is_refused(bundle, name):
    edit(bundle / "bundle.json", files={name: {"sha256": "", "size": 1}})
    assert f"names {name!r}, which leaves the bundle" in refusal("inspect", bundle)


@pytest.mark.parametrize("command", [["validate"], ["inspect"], ["run", "--prompt", "a"], ["bench"]])
def test_a_folder_that_is_no_bundle_is_named(tmp_path, command):
    assert f"{tmp_path} is no bundle" in refusal(command[0], tmp_path, *command[1:])


# --- options of run, bench and validate


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--prompt", ""], "The prompt is empty"),
        (["run", "--prompt", "word " * 400], "tokens, the bundle's context holds 96"),
        (["run", "--prompt", "a", "--drafter", "mpt"], "no drafter 'mpt'; did you mean 'mtp'?"),
        (["run", "--prompt", "a", "--max-tokens", "0"], "--max-tokens is 0"),
        (["run", "--prompt", "a", "--threads", "-1"], "--threads is -1"),
        (["run", "--prompt", "a", "--drafts", "-1"], "--drafts is -1; give a number, 0 or more, or auto."),
        (["run", "--prompt", "a", "--drafts", "many"], "--drafts is many; give a number, 0 or more, or auto."),
        (["run", "--prompt", "a", "--regex", "(a"], "The regex cannot be used: "),
        (["run", "--prompt", "a", "--regex", "a", "--grammar", "no.lark"], "--regex and --grammar are both given"),
        (["run", "--prompt", "a", "--json-schema", "no.json"], "Cannot read or write no.json: No such file"),
        (["run", "--prompt", "a", "--json-schema", PROMPTS_FILE], "The json-schema is no JSON: "),
        (["run", "--prompt", "a", "--grammar", sys.executable], "is no UTF-8 text"),
        (["run", "--prompt", "a", "--stop", ""], "A stop string is empty"),
        (["run", "--prompt", "a", "--temperature", "-1"], "--temperature is -1.0; give 0, which is greedy, or more."),
        (["run", "--prompt", "a", "--top-k", "-1"], "--top-k is -1"),
        (["run", "--prompt", "a", "--top-p", "0"], "--top-p is 0.0"),
        (["run", "--prompt", "a", "--min-p", "2"], "--min-p is 2.0"),
        (["run", "--prompt", "a", "--repetition-penalty", "0"], "--repetition-penalty is 0.0"),
        (["run", "--prompt", "a", "--seed", "-1"], "--seed is -1"),
        (
            ["run", "--prompt", "a", "--temperature", "1", "--accept", "rejection", "--drafts", "auto"],
            "measured times, on which rejection's text would depend",
        ),
        (["bench", "--drafts", "-1"], "--drafts is -1"),
        (["bench", "--max-tokens", "0"], "--max-tokens is 0"),
        (["bench", "--per-domain", "0"], "--per-domain is 0"),
        (["bench", "--threads", "-1"], "--threads is -1"),
        (["validate", "--max-tokens", "0"], "--max-tokens is 0"),
        (["validate", "--per-domain", "-1"], "--per-domain is -1"),
        (["validate", "--threads", "-1"], "--threads is -1"),
        (["validate", "--target", "t"], "t is no checkpoint"),
        (["bench", "--prompts", "none.jsonl"], "no prompt file none.jsonl"),
        (["validate", "--prompts", "none.jsonl"], "no prompt file none.jsonl"),
    ],
)
def test_an_option_that_cannot_be_is_named(whole, arguments, says):
    assert says in refusal(arguments[0], whole, *arguments[1:])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "a"}\n\n{"txt": "b"}\n', "prompts.jsonl line 3 is no prompt"),
        ('{"text": "a"', "prompts.jsonl line 1 is no prompt"),
        ("\n", "prompts.jsonl holds no prompt"),
        ('{"text": ""}', "The prompt is empty"),
    ],
)
def test_a_bad_prompt_file_is_named_with_its_line(whole, tmp_path, content, says):
    (tmp_path / "prompts.jsonl").write_text(content)
    assert says in refusal("bench", whole, "--prompts", tmp_path / "prompts.jsonl")


# --- what is printed where


@pytest.mark.parametrize(
    "command", [["inspect"], ["run", "--prompt", "import", "--max-tokens", "8"], ["bench", *FEW], ["validate", *FEW]]
)
def test_json_is_one_document_and_nothing_else_is_printed(whole, command):
    done = call(command[0], whole, *command[1:], "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert isinstance(json.loads(done.stdout), dict)


@pytest.mark.parametrize("more", [["--seed", "1"], ["--seed", "2"], ["--seed", "1", "--drafts", "auto"]])
def test_a_drawn_text_is_the_one_of_plain_decoding_with_that_seed(whole, more):
    settings = ["--prompt", "import", "--max-tokens", "24", "--temperature", "1", "--repetition-penalty", "1.1"]
    settings += ["--accept", "exact", *more]
    found = [
        json.loads(call("run", whole, *settings, *drafter, "--json").stdout) for drafter in ([], ["--drafter", "none"])
    ]
    assert found[0]["text"] == found[1]["text"]
    assert found[0]["identical"]


def test_progress_goes_to_standard_error_and_quiet_stops_it(whole):
    loud, quiet = (call("run", whole, "--prompt", "import", "--max-tokens", "8", *q) for q in ([], ["--quiet"]))
    assert loud.stderr.startswith("Opening the bundle ...\n")
    assert quiet.stderr == ""
    assert quiet.stdout == loud.stdout != ""


def test_version_is_the_package_s():
    done = call("--version")
    assert (done.returncode, done.stdout) == (0, f"pocketdraft {metadata.version('pocketdraft')}\n")


@pytest.mark.parametrize("command", [["inspect"], ["inspect", "--json"], ["run", "--prompt", "import", "--quiet"]])
def test_a_reader_that_goes_away_is_no_error(whole, command):
    """As in `pocketdraft run ... | head -1`, but surely gone before the first write."""
    ours, theirs = os.pipe()
    os.close(ours)
    done = call(command[0], whole, *command[1:], stdout=theirs)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, "")


def test_run_keeps_to_a_constraint_and_says_why_it_ended(whole, tmp_path):
    def run(*options: object) -> dict[str, object]:
        done = call("run", whole, "--prompt", "import", "--json", *options)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["identical"]
        return found

    (tmp_path / "schema").write_text('{"enum": ["one", "other"]}')
    (tmp_path / "lark").write_text('start: "(" /[0-9]/ ")"')
    found = [run("--json-schema", tmp_path / "schema"), run("--grammar", tmp_path / "lark")]
    assert json.loads(found[0]["text"]) in ("one", "other")
    assert re.fullmatch(r"\([0-9]\)", found[1]["text"])
    assert [one["finish"] for one in found] == ["stop", "stop"]
    cut = run("--regex", "[ab]{50}", "--max-tokens", 5)
    assert (cut["finish"], re.sub("[ab]", "", cut["text"])) == ("budget", "")
    stopped = run("--regex", "x{9}y{9}", "--stop", "yy", "--stop", "z")
    assert (stopped["finish"], stopped["text"]) == ("stop", "x" * 9)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", [["inspect"], ["inspect", "--json"], ["run", "--prompt", "import", "--quiet"]])
def test_output_to_a_full_disk_is_one_sentence(whole, command):
    with open("/dev/full", "w") as full:
        done = call(command[0], whole, *command[1:], stdout=full.fileno())
    said = "pocketdraft: Cannot read or write standard output: No space left on device.\n"
    assert (done.returncode, done.stderr) == (2, said)
