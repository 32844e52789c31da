"""The Android demo's engines on the real runtimes, in a JVM of this machine and of an emulated arm64: what Python's
session generates from a bundle, the loop in Kotlin generates.

The arm64 JVM is of `tests/arm64/setup.sh`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
import shims
from qwen3_5 import bundle_of
from running import ROOT, android_tool, plain_tokens

from pocketdraft.export.tiny import PROMPTS_FILE
from pocketdraft.runtime.cost import RoundCost
from pocketdraft.runtime.drafters import runnable
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.manifest import Backend, change, read
from pocketdraft.runtime.profile import files_digest, read_profile
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer

ARM64 = ROOT / "build/arm64"
BUDGET = 24
BACKENDS = get_args(Backend)
TESTS = [f"pocketdraft.engines.{name}Test" for name in ("Engine", "Sequences", "LiteRTLM")]


@dataclass(frozen=True)
class Machine:
    """A JVM, the folder of its shims, and what it calls its processor."""

    java: list[str]
    shims: Path
    architecture: str


@pytest.fixture(scope="module")
def host() -> Machine:
    folder = shims.build(ROOT / "build/android/host", [Path(sysconfig.get_path("purelib"))])
    names = {"x86_64": "amd64"}
    return Machine(["java"], folder, names.get(platform.machine(), platform.machine()))


@pytest.fixture(scope="module")
def arm64() -> Machine:
    java = next(ARM64.glob("rootfs/usr/lib/jvm/java-*-arm64/bin/java"), None)
    if java is None:
        pytest.skip("no arm64 JVM: run tests/arm64/setup.sh first")
    folder = shims.build(ARM64 / "shims", [ARM64 / "site-packages", ARM64], "aarch64-linux-gnu-")
    emulator = [ARM64 / "qemu/usr/bin/qemu-aarch64", "-cpu", "neoverse-n1", "-L", ARM64 / "rootfs"]
    # The second compiler takes longer to run here than it saves.
    return Machine([*map(str, emulator), str(java), "-XX:TieredStopAtLevel=1"], folder, "aarch64")


@pytest.fixture(
    params=[pytest.param("host", marks=pytest.mark.android), pytest.param("arm64", marks=pytest.mark.arm64)]
)
def machine(request: pytest.FixtureRequest) -> Machine:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def classpath() -> str:
    return android_tool("jvm", "classpath", "--tests").strip()


@pytest.fixture(scope="module")
def ours(make_trained_bundle) -> Callable[[str, str], tuple[list[list[int]], list[list[int]]]]:
    """Prompts, and what Python's session generates from each, by recipe and backend."""
    made: dict[tuple[str, str], tuple[list[list[int]], list[list[int]]]] = {}

    def make(recipe: str, backend: str) -> tuple[list[list[int]], list[list[int]]]:
        if (recipe, backend) not in made:
            bundle = make_trained_bundle(recipe, backend)
            engine = open_engine(bundle, 1)
            tokenizer, target = Tokenizer(bundle / "tokenizer.json", engine.manifest.tokens.bos), Target(engine)
            prompts = [tokenizer.encode(prompt.text) for prompt in read_prompts(PROMPTS_FILE, per_domain=1)]
            made[recipe, backend] = prompts, plain_tokens(target, prompts, BUDGET)
            engine.close()
        return made[recipe, backend]

    return make


def java(machine: Machine, classpath: str, *arguments: str, stdin: str = "") -> str:
    """Standard output of a program on the class path. A fault of the shims against JNI's rules is one of the test."""
    command = [*machine.java, "-Xcheck:jni", f"-Dpocketdraft.libraries={machine.shims}", "-cp", classpath, *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "in native method" not in done.stdout, done.stdout[:3000]
    return done.stdout


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ["f32", "mixed"])
def test_tokens_are_python_s(make_trained_bundle, machine, classpath, ours, backend, recipe):
    """Float32 token for token. Quantized, another build of a runtime may round otherwise; drafted is plain anyhow."""
    prompts, tokens = ours(recipe, backend)
    job = {"bundle": str(make_trained_bundle(recipe, backend)), "prompts": prompts, "budget": BUDGET}
    job |= {"drafters": ["none", "mtp", "mtp_tree"], "drafts": 4, "threads": 1}
    output = java(machine, classpath, "pocketdraft.engines.GenerateKt", stdin=json.dumps(job))
    found = json.loads(output.splitlines()[-1])
    assert found["machine"] == machine.architecture
    assert found["mtp"] == found["mtp_tree"] == found["none"]
    assert found["mtp rounds"] < found["none rounds"] / 2
    if recipe == "f32":
        assert found["none"] == tokens


@pytest.mark.android
@pytest.mark.parametrize("backend", ["litert", "onnx"])
def test_recurrent_layers_take_back_what_they_take_back_in_python(qwen_pair, host, classpath, backend):
    """Prompts with padding and without, one after the other in the memory of one sequence."""
    bundle = bundle_of(qwen_pair, backend, "f32")
    engine, prompts = open_engine(bundle, 1), [[5, 6, 7, 8, 5, 6, 7], list(range(30, 55)), [9, 8, 9, 8, 9]]
    tokens = plain_tokens(Target(engine), prompts, BUDGET)
    engine.close()
    drafters = ["none", "prompt_lookup", "mtp_heads"]
    job = {"bundle": str(bundle), "prompts": prompts, "budget": BUDGET, "drafters": drafters, "drafts": 4, "threads": 1}
    found = json.loads(java(host, classpath, "pocketdraft.engines.GenerateKt", stdin=json.dumps(job)).splitlines()[-1])
    assert all(found[drafter] == tokens for drafter in drafters)


@pytest.mark.android
@pytest.mark.parametrize("backend", ["litert", "onnx"])
def test_every_drafter_gives_plain_decoding_s_tokens_in_fewer_rounds(make_full_bundle, host, classpath, backend):
    """Each with the others' graphs in the bundle, and K/V of its own beside the target's in a sequence."""
    bundle = make_full_bundle(backend)
    manifest = read(bundle)
    tokenizer, drafters = Tokenizer(bundle / "tokenizer.json", manifest.tokens.bos), runnable(manifest.drafters)
    assert {"dflash_tree", "mtp_tree", "hybrid", *manifest.drafters.kinds} < set(drafters)
    prompts = [tokenizer.encode(prompt.text) for prompt in read_prompts(PROMPTS_FILE, per_domain=1)]
    job = {"bundle": str(bundle), "prompts": prompts, "budget": BUDGET, "drafts": 4, "threads": 1}
    text = json.dumps(job | {"drafters": ["none", *drafters]})
    found = json.loads(java(host, classpath, "pocketdraft.engines.GenerateKt", stdin=text).splitlines()[-1])
    for drafter in drafters:
        assert found[drafter] == found["none"], drafter
        assert found[f"{drafter} rounds"] < found["none rounds"] * 0.8, drafter


@pytest.mark.android
def test_the_app_s_benchmark_measures_another_default_and_times_all_graphs(make_full_bundle, host, classpath, tmp_path):
    bundle = shutil.copytree(make_full_bundle("litert"), tmp_path / "bundle")
    manifest = read(bundle)
    change(bundle, {"drafters": manifest.drafters.model_copy(update={"mtp": None})})
    job = {"bundle": str(bundle), "prompts": str(PROMPTS_FILE), "drafts": 4, "tokens": 24}
    profile = json.loads(java(host, classpath, "pocketdraft.engines.MeasureKt", stdin=json.dumps(job)).splitlines()[-1])
    ran = {graph.name for graph in manifest.graphs if graph.role != "exit_fill"}  # no token leaves early there
    assert {timing["name"] for timing in profile["graphs"]} == ran
    assert {speed["drafter"] for speed in profile["speeds"]} == {"dflash"}
    assert profile["drafters"]["dflash"]["draft_s"] > 0 == profile["host"]["draft_s"]


@pytest.mark.android
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_app_s_benchmark_gives_a_profile_for_tune(make_trained_bundle, host, classpath, backend, tmp_path):
    bundle = make_trained_bundle("f32", backend)
    job = {"bundle": str(bundle), "prompts": str(PROMPTS_FILE), "drafts": 4, "tokens": 24}
    output = java(host, classpath, "pocketdraft.engines.MeasureKt", stdin=json.dumps(job))
    (tmp_path / "phone.json").write_text(output.splitlines()[-1])
    profile, manifest = read_profile(tmp_path / "phone.json"), read(bundle)
    assert profile.bundle_sha256 == files_digest(manifest)
    assert {timing.name for timing in profile.graphs} == {graph.name for graph in manifest.graphs}
    assert {speed.note for speed in profile.speeds} == {"code", "en", "es", "json"}  # no word of other tokens
    cost = RoundCost.of(profile)
    assert cost.longest == 4
    assert 0 < cost.seconds(0) < cost.seconds(4) < 1


def test_engines_share_kv_and_refuse_what_is_wrong(make_trained_bundle, machine, classpath):
    """JUnit's tests of the engines, and of LiteRT-LM behind the same shim."""
    bundles = os.pathsep.join(str(make_trained_bundle("f32", backend)) for backend in BACKENDS)
    output = java(machine, classpath, f"-Dpocketdraft.bundles={bundles}", "org.junit.runner.JUnitCore", *TESTS)
    count = re.search(r"^OK \((\d+) tests\)", output, re.MULTILINE)
    assert count, output[-3000:]
    assert int(count[1]) >= 11 * len(BACKENDS) + 5
