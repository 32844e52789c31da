"""The phone's instruction set has kernels of its own: under emulation the same bundles give the same tokens.

`tests/arm64/setup.sh` makes the emulated Python.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from arm64.generate import logits_along
from running import plain_tokens

from pocketdraft.export.tiny import PROMPTS_FILE
from pocketdraft.runtime import litert_lm
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.manifest import Backend
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer

TESTS = Path(__file__).parent
FOLDER = TESTS.parent / "build/arm64"
TEXTS = [prompt.text for prompt in read_prompts(PROMPTS_FILE, per_domain=1)]
BUDGET = 24
pytestmark = [
    pytest.mark.arm64,
    pytest.mark.skipif(not (FOLDER / "ready").exists(), reason="no emulator: run tests/arm64/setup.sh first"),
]


def emulated(*arguments: object, stdin: str) -> str:
    """Standard output of the emulated Python."""
    command = [FOLDER / "qemu/usr/bin/qemu-aarch64", "-cpu", "neoverse-n1", "-L", FOLDER / "rootfs"]
    command += [FOLDER / "rootfs/usr/bin/python3.11", *arguments]
    path = f"{FOLDER / 'site-packages'}:{TESTS}"
    environment = os.environ | {"PYTHONHOME": str(FOLDER / "rootfs/usr"), "PYTHONPATH": path}
    done = subprocess.run(
        list(map(str, command)), input=stdin, env=environment, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("backend", get_args(Backend))
@pytest.mark.parametrize("recipe", ["f32", "mixed"])
def test_tokens_are_those_of_this_machine(make_trained_bundle, tmp_path, backend, recipe):
    """Float32 token for token. Quantized, a rounding may fall the other way: then only where the top two logits lay
    closer than the machines' logits do, and drafted is still plain on each."""
    bundle = make_trained_bundle(recipe, backend)
    engine = open_engine(bundle, 1)
    tokenizer, target = Tokenizer(bundle / "tokenizer.json", engine.manifest.tokens.bos), Target(engine)
    prompts = [tokenizer.encode(text) for text in TEXTS]
    ours = plain_tokens(target, prompts, BUDGET)
    native = [FOLDER / "executorch/lib/libexecutorch_native.so"] if backend == "executorch" else []
    job = json.dumps({"texts": TEXTS, "tokens": ours})
    output = emulated("-m", "arm64.generate", bundle, BUDGET, tmp_path / "logits.npy", *native, stdin=job)
    found = json.loads(output.splitlines()[-1])
    assert found["machine"] == "aarch64"
    assert found["mtp"] == found["none"]
    if recipe == "f32":
        assert found["none"] == ours
    theirs = np.load(tmp_path / "logits.npy")
    for index, prompt in enumerate(prompts):
        logits = logits_along(target, prompt, ours[index])
        gap = np.abs(logits - theirs[index]).max()
        assert gap < (1e-3 if recipe == "f32" else 1.0)
        for at, (mine, other) in enumerate(zip(ours[index], found["none"][index], strict=True)):
            if mine != other:
                assert logits[at, mine] - logits[at, other] <= 2 * gap
                break


@pytest.mark.parametrize("speculate", [False, True])
def test_litert_lm_s_text_is_that_of_this_machine(make_trained_bundle, speculate):
    file = make_trained_bundle("f32", "litert") / "model.litertlm"
    job = {"file": str(file), "prompts": TEXTS, "budget": BUDGET, "speculate": speculate, "threads": 1, "device": "cpu"}
    output = emulated("-m", "pocketdraft.runtime.litert_lm", stdin=json.dumps(job))
    line = next(line for line in output.splitlines() if line.startswith(litert_lm.RESULT))
    theirs = json.loads(line.removeprefix(litert_lm.RESULT))["texts"]
    assert theirs == list(litert_lm.run(file, TEXTS, BUDGET, speculate).texts)
