"""The APK's own libraries, run here on a stand-in for Android's C library, give the tokens of the Python runtime.

x86_64's as they are (`make android`), the phone's under emulation (`make arm64`).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from android.stand_in import stand_in
from running import ROOT, android_tool, plain_tokens

from android_demo.tools.build import APK
from pocketdraft.export.tiny import PROMPTS_FILE
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.manifest import Backend
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer

EMULATED = ROOT / "build/arm64"
JAVA_ARM64 = EMULATED / "rootfs/usr/lib/jvm/java-17-openjdk-arm64/bin/java"
ABIS = {"x86_64": "x86_64", "aarch64": "arm64-v8a"}
TEXTS = [prompt.text for prompt in read_prompts(PROMPTS_FILE, per_domain=1)][:2]
BUDGET = 24
MACHINES = [
    pytest.param(
        "x86_64",
        marks=[
            pytest.mark.android,
            pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine does not run x86_64's libraries"),
        ],
    ),
    pytest.param(
        "aarch64",
        marks=[
            pytest.mark.arm64,
            pytest.mark.skipif(not JAVA_ARM64.exists(), reason="no emulated JVM: run tests/arm64/setup.sh first"),
        ],
    ),
]


@pytest.fixture(scope="module")
def libraries_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By machine, what the APK has under lib/ABI, and the stand-in beside it."""
    made: dict[str, Path] = {}

    def make(machine: str) -> Path:
        if machine not in made:
            android_tool("build")
            folder = tmp_path_factory.mktemp(machine)
            with zipfile.ZipFile(APK) as packed:
                for name in packed.namelist():
                    if name.startswith(f"lib/{ABIS[machine]}/"):
                        (folder / Path(name).name).write_bytes(packed.read(name))
            stand_in(folder, machine)
            made[machine] = folder
        return made[machine]

    return make


def java(machine: str, libraries: Path, *arguments: str, stdin: str = "") -> str:
    """Standard output of a program of the engines' tests on these libraries."""
    command, environment = ["java"], os.environ | {"LD_LIBRARY_PATH": str(libraries)}
    if machine == "aarch64":
        command = [f"{EMULATED}/qemu/usr/bin/qemu-aarch64", "-cpu", "neoverse-n1", "-L", f"{EMULATED}/rootfs"]
        command += ["-E", f"LD_LIBRARY_PATH={libraries}", str(JAVA_ARM64)]
        environment = dict(os.environ)
    classpath = android_tool("jvm", "classpath", "--tests").strip()
    command += [f"-Dpocketdraft.libraries={libraries}", "-cp", classpath, *arguments]
    done = subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("backend", get_args(Backend))
@pytest.mark.parametrize("recipe", ["f32", "mixed"])
def test_tokens_are_those_of_this_machine(make_trained_bundle, libraries_of, recipe, backend, machine):
    """Float32 token for token; quantized, versions of a runtime may round otherwise, but drafted is still plain."""
    bundle = make_trained_bundle(recipe, backend)
    engine = open_engine(bundle, 1)
    tokenizer, target = Tokenizer(bundle / "tokenizer.json", engine.manifest.tokens.bos), Target(engine)
    prompts = [tokenizer.encode(text) for text in TEXTS]
    ours = plain_tokens(target, prompts, BUDGET)
    job = {"bundle": str(bundle), "prompts": prompts, "budget": BUDGET, "drafts": 4, "threads": 1}
    text = json.dumps(job | {"drafters": ["none", "mtp"]})
    output = java(machine, libraries_of(machine), "pocketdraft.engines.GenerateKt", stdin=text)
    found = json.loads(output.splitlines()[-1])
    assert found["machine"] == {"x86_64": "amd64"}.get(machine, machine)
    assert found["mtp"] == found["none"]
    if recipe == "f32":
        assert found["none"] == ours


@pytest.mark.parametrize("machine", MACHINES[:1])
@pytest.mark.parametrize("backend", get_args(Backend))
def test_they_do_what_engines_owe(make_trained_bundle, libraries_of, backend, machine):
    """Moving K/V rows of trees too, for which ExecuTorch's has kernels of its own."""
    bundles = f"-Dpocketdraft.bundles={make_trained_bundle('f32', backend)}"
    java(machine, libraries_of(machine), bundles, "org.junit.runner.JUnitCore", "pocketdraft.engines.EngineTest")
