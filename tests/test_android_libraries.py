"""The APK's own libraries, run here on a stand-in for Android's C library, give the tokens of the Python runtime."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import get_args

import pytest
from android.stand_in import stand_in

from android_demo.tools.build import APK
from pocketdraft.export.tiny import PROMPTS_FILE
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.manifest import Backend
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer

ROOT = Path(__file__).parents[1]
TEXTS = [prompt.text for prompt in read_prompts(PROMPTS_FILE, per_domain=1)]
BUDGET = 24
pytestmark = [
    pytest.mark.android,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the APK's libraries for a desk are x86_64's"),
]


def tool(*arguments: str) -> str:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the APK has under lib/x86_64, and the stand-in beside it."""
    tool("android_demo.tools.build")
    folder = tmp_path_factory.mktemp("apk")
    with zipfile.ZipFile(APK) as packed:
        for name in packed.namelist():
            if name.startswith("lib/x86_64/"):
                (folder / Path(name).name).write_bytes(packed.read(name))
    stand_in(folder)
    return folder


def generated(libraries: Path, bundle: Path, prompts: list[list[int]]) -> dict[str, list[list[int]]]:
    """What the Kotlin runtime makes of the prompts, by drafter."""
    job = {"bundle": str(bundle), "prompts": prompts, "budget": BUDGET, "drafts": 4, "threads": 1}
    classpath = tool("android_demo.tools.jvm", "classpath", "--tests").strip()
    command = ["java", f"-Dpocketdraft.libraries={libraries}", "-cp", classpath, "pocketdraft.engines.GenerateKt"]
    done = subprocess.run(
        command,
        input=json.dumps(job | {"drafters": ["none", "mtp"]}),
        env=os.environ | {"LD_LIBRARY_PATH": str(libraries)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("backend", get_args(Backend))
@pytest.mark.parametrize("recipe", ["f32", "mixed"])
def test_tokens_are_those_of_this_machine(make_trained_bundle, libraries, recipe, backend):
    """Float32 token for token; quantized, versions of a runtime may round otherwise, but drafted is still plain."""
    bundle = make_trained_bundle(recipe, backend)
    engine = open_engine(bundle, 1)
    tokenizer, target = Tokenizer(bundle / "tokenizer.json", engine.manifest.tokens.bos), Target(engine)
    prompts = [tokenizer.encode(text) for text in TEXTS]
    ours = [
        [t for e in open_session(engine, "none", target=target).generate(p, BUDGET) for t in e.tokens] for p in prompts
    ]
    found = generated(libraries, bundle, prompts)
    assert found["mtp"] == found["none"]
    if recipe == "f32":
        assert found["none"] == ours
