"""A GPU's graphs on a GPU: LiteRT-LM's WebGPU backend on a software Vulkan driver, held against LiteRT-LM on the CPU.

`tests/gpu/setup.sh` fetches the driver. What the same graphs do on the CPU is in `test_gpu_graphs.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pocketdraft.export.backends.eager import EagerEngine
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.pipeline import load_models, make_steps
from pocketdraft.export.rungs import plan_of
from pocketdraft.export.step import Plain, all_weights
from pocketdraft.export.tiny import DRAFTER_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.quantize.weights import round_trip
from pocketdraft.runtime import litert_lm
from pocketdraft.runtime.engine import Engine
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import read
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.text import Tokenizer

FOLDER = Path(__file__).parents[1] / "build/gpu"
TEXTS = [prompt.text for prompt in read_prompts(PROMPTS_FILE, per_domain=1)]
BUDGET, DRAFTS = 24, 4
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (FOLDER / "ready").exists(), reason="no Vulkan driver: run tests/gpu/setup.sh first"),
]


@pytest.fixture(autouse=True)
def driver(monkeypatch):
    """For LiteRT-LM's process: the loader by its folder, the driver by its description."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(FOLDER))
    monkeypatch.setenv("VK_ICD_FILENAMES", str(FOLDER / "vk_swiftshader_icd.json"))


def weight_only(bundle: Path) -> EagerEngine:
    """What a GPU computes of a quantized graph: weights rounded, activations left in float32."""
    manifest = read(bundle)
    plan = plan_of(manifest, TARGET_DIR, [DRAFTER_DIR])
    steps, _ = make_steps(plan, load_models(Checkpoint.open(TARGET_DIR), Checkpoint.open(DRAFTER_DIR)), Plain())
    for name, module in all_weights(steps).items():
        rule = plan.recipes.rule_for(name)
        if rule.dtype != "float32":
            rounded = torch.from_numpy(round_trip(module.weight.detach().numpy(), rule))
            module.weight = torch.nn.Parameter(rounded, requires_grad=False)
    return EagerEngine(manifest, steps)


def our_loop(engine: Engine, tokenizer: Tokenizer) -> tuple[list[str], float]:
    """Texts and success rate of our own loop, counted as LiteRT-LM counts: the last round whole."""
    texts, rounds = [], []
    for text in TEXTS:
        tokens: list[int] = []
        for emitted in open_session(engine, "mtp", DRAFTS).generate(tokenizer.encode(text), BUDGET + DRAFTS):
            if tokens:  # the first round has no draft
                rounds.append(len(emitted.tokens) - 1)
            tokens.extend(emitted.tokens)
            if len(tokens) >= BUDGET:
                break
        texts.append(tokenizer.decode(tokens, special=True))
    return texts, sum(rounds) / (len(rounds) * DRAFTS)


def assert_like_the_cpu(file: Path, texts: list[str]) -> None:
    for speculate in (False, True):
        cpu, gpu = (litert_lm.run(file, texts, BUDGET, speculate, device=device) for device in ("cpu", "gpu"))
        assert gpu.texts == cpu.texts
        assert gpu.tokens == cpu.tokens
        assert gpu.success_rate == cpu.success_rate
        assert (gpu.success_rate is not None) == speculate


def test_texts_and_acceptance_are_the_cpu_s(make_trained_bundle):
    assert_like_the_cpu(make_trained_bundle("f32", "litert", "gpu") / "model.litertlm", TEXTS)


def test_a_model_without_per_layer_embeddings_and_shared_k_v_is_the_cpu_s_too(make_bundle):
    assert_like_the_cpu(make_bundle("dense", "f32", device="gpu") / "model.litertlm", [text[:40] for text in TEXTS])


@pytest.mark.parametrize("recipe", ["f32", "w8", "mixed"])
def test_texts_and_acceptance_are_those_of_rounded_weights(make_trained_bundle, recipe):
    """The CPU's kernels round activations too, so a quantized bundle's tokens there may differ: not the reference."""
    bundle = make_trained_bundle(recipe, "litert", "gpu")
    engine = weight_only(bundle)
    texts, rate = our_loop(engine, Tokenizer(bundle / "tokenizer.json", engine.manifest.tokens.bos))
    for speculate in (False, True):
        gpu = litert_lm.run(bundle / "model.litertlm", TEXTS, BUDGET, speculate, device="gpu")
        assert all(litert_lm.same_text(ours, theirs) for ours, theirs in zip(texts, gpu.texts, strict=True))
        assert min(gpu.tokens) >= BUDGET
    assert gpu.success_rate == pytest.approx(rate, abs=1e-6)


def test_without_a_driver_the_gpu_refuses(make_trained_bundle, monkeypatch, tmp_path):
    """Else all of the above could be the CPU's work."""
    monkeypatch.setenv("VK_ICD_FILENAMES", str(tmp_path / "none.json"))
    file = make_trained_bundle("f32", "litert", "gpu") / "model.litertlm"
    with pytest.raises(PocketdraftError, match="LiteRT-LM cannot run"):
        litert_lm.run(file, TEXTS[:1], BUDGET, speculate=True, device="gpu")
