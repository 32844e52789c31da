"""Every kind of drafter on the embedded target's real weights: plain decoding's tokens, and parity, on each backend."""

from __future__ import annotations

import pytest

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.rungs import eager_pair, rungs
from pocketdraft.export.tiny import EMBEDDED, PROMPTS_FILE, TARGET_DIR
from pocketdraft.runtime.drafters import runnable
from pocketdraft.runtime.engine import Engine, open_engine
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.sampler import Sampler
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer
from pocketdraft.runtime.validate import validate

BUDGET = 48
KINDS = ["dflash", "draft_model", "early_exit", "mtp", "mtp_heads"]
FEWEST = {"dflash": 0.6, "draft_model": 0.5, "early_exit": 0.5, "mtp": 1.5, "mtp_heads": 0.5}  # accepted of 4


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = Tokenizer(TARGET_DIR / "tokenizer.json", Checkpoint.open(TARGET_DIR).tokens().bos)
    return [tokenizer.encode(prompt.text) for prompt in read_prompts(PROMPTS_FILE, 1)]


@pytest.fixture(scope="module")
def eager() -> Engine:
    files = [Checkpoint.open(folder) for folder in (TARGET_DIR, *EMBEDDED.values())]
    return eager_pair(*files, context=256, drafts=8)


def generated(
    engine: Engine, drafter: str, prompts: list[list[int]], sampler: Sampler, drafts: int = 4
) -> tuple[list, float]:
    """Texts, and accepted drafts a round."""
    target, texts, accepted, rounds = Target(engine), [], 0, 0
    for number, prompt in enumerate(prompts):
        session = open_session(engine, drafter, drafts, target, sampler.sample(number))
        texts.append([token for emitted in session.generate(prompt, BUDGET) for token in emitted.tokens])
        session.stats.check()
        accepted, rounds = accepted + session.stats.accepted, rounds + session.stats.rounds
    return texts, accepted / rounds


def test_the_embedded_target_has_a_drafter_of_each_kind(eager):
    assert sorted(eager.manifest.drafters.kinds) == KINDS
    assert {"dflash_tree", "hybrid", "mtp_tree", "prompt_lookup"} < set(runnable(eager.manifest.drafters))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, seed=3)], ids=["greedy", "sampled"])
def test_every_drafter_gives_the_tokens_of_plain_decoding(eager, prompts, sampling):
    plain, _ = generated(eager, "none", prompts, Sampler(sampling))
    for drafter in runnable(eager.manifest.drafters):
        assert generated(eager, drafter, prompts, Sampler(sampling))[0] == plain, drafter


@pytest.mark.parametrize("drafter", KINDS)
def test_the_embedded_drafters_are_accepted(eager, prompts, drafter):
    assert generated(eager, drafter, prompts, Sampler(Sampling()))[1] > FEWEST[drafter]


@pytest.mark.parametrize("domain", ["code", "en", "es", "json"])
def test_the_best_tree_is_accepted_no_less_than_the_chain_of_as_many_nodes(eager, domain):
    tokenizer = Tokenizer(TARGET_DIR / "tokenizer.json", eager.manifest.tokens.bos)
    own = [tokenizer.encode(prompt.text) for prompt in read_prompts(PROMPTS_FILE, 4) if prompt.domain == domain]
    chain, tree = (
        generated(eager, drafter, own, Sampler(Sampling()), drafts=8)[1] for drafter in ("dflash", "dflash_tree")
    )
    assert tree >= chain


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["litert", "onnx", "executorch"])
def test_every_drafter_gives_the_tokens_of_plain_decoding_on_each_backend(make_full_bundle, prompts, backend):
    engine = open_engine(make_full_bundle(backend), 1)
    plain, _ = generated(engine, "none", prompts, Sampler(Sampling()))
    for drafter in runnable(engine.manifest.drafters):
        texts, accepted = generated(engine, drafter, prompts, Sampler(Sampling()))
        assert texts == plain, drafter
        assert accepted > 0.8 * FEWEST.get(drafter, 0.0), drafter
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["litert", "onnx", "executorch"])
def test_every_graph_of_every_drafter_agrees_with_its_quantized_step_on_each_backend(make_full_bundle, backend):
    bundle, texts = make_full_bundle(backend), [prompt.text for prompt in read_prompts(PROMPTS_FILE, 1)]
    engine = open_engine(bundle, 1)
    above = rungs(engine.manifest, TARGET_DIR, tuple(EMBEDDED.values()))
    found = validate(bundle, engine, texts, 8, above, lambda _: None)
    compared = {row.graph for row in found.ladder["quantized step -> graph"]}
    assert compared == {graph.name for graph in engine.manifest.graphs}
    assert found.passed, found.to_json()
    engine.close()
