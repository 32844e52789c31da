"""A GPU's graphs on a GPU: LiteRT-LM's WebGPU backend on a software Vulkan driver, held against LiteRT-LM on the CPU.

`tests/gpu/setup.sh` fetches the driver. What the same graphs do on the CPU is in `test_gpu_graphs.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketdraft.export.tiny import PROMPTS_FILE
from pocketdraft.runtime import litert_lm
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.text import Tokenizer

FOLDER = Path(__file__).parents[1] / "build/gpu"
TEXTS = [prompt.text for prompt in read_prompts(PROMPTS_FILE, per_domain=1)]
BUDGET = 24
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (FOLDER / "ready").exists(), reason="no Vulkan driver: run tests/gpu/setup.sh first"),
]


@pytest.fixture(autouse=True)
def driver(monkeypatch):
    """For LiteRT-LM's process: the loader by its folder, the driver by its description."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(FOLDER))
    monkeypatch.setenv("VK_ICD_FILENAMES", str(FOLDER / "vk_swiftshader_icd.json"))


def our_texts(bundle: Path) -> list[str]:
    """What plain decoding gives in our runtime, on the CPU."""
    engine = open_engine(bundle, 1)
    tokenizer = Tokenizer(bundle / "tokenizer.json", engine.manifest.tokens.bos)
    found = []
    for text in TEXTS:
        rounds = open_session(engine, "none").generate(tokenizer.encode(text), BUDGET)
        tokens = [token for emitted in rounds for token in emitted.tokens]
        stop = engine.manifest.tokens.stop
        found.append(tokenizer.decode([token for token in tokens if token not in stop], special=True))
    engine.close()
    return found


@pytest.mark.parametrize("recipe", ["f32", "w8", "w4", "mixed"])
def test_texts_and_acceptance_are_the_cpu_s(make_trained_bundle, recipe):
    bundle = make_trained_bundle(recipe, "litert", "gpu")
    file, ours = bundle / "model.litertlm", our_texts(bundle)
    for speculate in (False, True):
        cpu, gpu = (litert_lm.run(file, TEXTS, BUDGET, speculate, device=device) for device in ("cpu", "gpu"))
        assert gpu.texts == cpu.texts
        assert gpu.tokens == cpu.tokens
        assert all(litert_lm.same_text(mine, theirs) for mine, theirs in zip(ours, gpu.texts, strict=True))
        assert gpu.success_rate == cpu.success_rate
        assert (gpu.success_rate is not None) == speculate


def test_without_a_driver_the_gpu_refuses(make_trained_bundle, monkeypatch, tmp_path):
    """Else all of the above could be the CPU's work."""
    monkeypatch.setenv("VK_ICD_FILENAMES", str(tmp_path / "none.json"))
    file = make_trained_bundle("f32", "litert", "gpu") / "model.litertlm"
    with pytest.raises(PocketdraftError, match="LiteRT-LM cannot run"):
        litert_lm.run(file, TEXTS[:1], BUDGET, speculate=True, device="gpu")
