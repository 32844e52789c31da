"""The embedded target's native MTP head and independent draft model: what is committed, and how it is measured."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor
from transformers import Gemma4ForCausalLM

from pocketdraft.export import heads as mtp_heads
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.distil import Teacher, count_rounds, teach
from pocketdraft.export.drafting import load_drafter
from pocketdraft.export.families import load_target
from pocketdraft.export.hf_compat import patch_transformers
from pocketdraft.export.models.mtp_heads import MtpHead
from pocketdraft.export.step import Plain, StepKV
from pocketdraft.export.stored import load as load_weights
from pocketdraft.export.tiny import DRAFT_MODEL_DIR, MTP_HEADS_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.export.tiny import train_draft_model as draft_model
from pocketdraft.export.tiny.train import load
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.stats import Stats
from pocketdraft.runtime.text import Tokenizer

LIMIT = 1e-4
SLOTS = 128
DRAFTS = 4


@functools.cache
def target() -> Gemma4ForCausalLM:
    patch_transformers()
    return load(Gemma4ForCausalLM, TARGET_DIR)


@functools.cache
def small() -> Gemma4ForCausalLM:
    patch_transformers()
    return load(Gemma4ForCausalLM, DRAFT_MODEL_DIR)


@functools.cache
def text(domain: str = "json") -> tuple[Tensor, int]:
    """int64 [1, T]: a prompt and what the target goes on with, greedily; and the prompt's length."""
    prompt = next(prompt for prompt in read_prompts(PROMPTS_FILE) if prompt.domain == domain)
    tokenizer = Tokenizer(TARGET_DIR / "tokenizer.json", Checkpoint.open(TARGET_DIR).tokens().bos)
    tokens = torch.tensor([tokenizer.encode(prompt.text)])
    written = target().generate(tokens, do_sample=False, max_new_tokens=40, eos_token_id=None, pad_token_id=0)
    return written, tokens.shape[1]


@functools.cache
def teacher() -> Teacher:
    return teach(target(), text()[0])


@functools.cache
def head() -> MtpHead:
    module, places = load_drafter(Checkpoint.open(MTP_HEADS_DIR), None)
    load_weights(places, module)
    return module


@torch.no_grad()
def drafted(anchor: int) -> tuple[Tensor, list[int]]:
    """States [1, DRAFTS, D] and tokens that our head drafts after the target's row `anchor`, as a runtime would."""
    taught = teacher()
    shapes = {"k": (SLOTS, 32), "v": (32, SLOTS)}
    tensors = {f"kv_cache_{name}_0": torch.zeros(1, 1, *shape) for name, shape in shapes.items()}
    hidden, tokens, start = taught.hidden[:, : anchor + 1], taught.tokens[:, 1 : anchor + 2], 0
    states, drafts = [], []
    for _ in range(DRAFTS):
        positions = torch.arange(start, start + tokens.shape[1], dtype=torch.int32)
        mask = (torch.arange(SLOTS)[None] <= positions[:, None])[None, None]
        kv = StepKV(tensors, positions[:1], positions[-1:], SLOTS, Plain())
        state = head()(target().model.embed_tokens(tokens), hidden, positions, mask, kv)[:, -1:]
        tensors, start = kv.tensors, start + tokens.shape[1]
        hidden, tokens = state, mtp_heads.logits(taught, state).argmax(-1)
        states.append(state)
        drafts.append(int(tokens))
    return torch.cat(states, 1), drafts


def stands(tokens: list[int], at: int, drafts: list[int]) -> int:
    """How many of `drafts` are the tokens from `at` on, up to the first that is not."""
    coming = [*tokens[at : at + len(drafts)], *[-1] * len(drafts)]
    return next((k for k, draft in enumerate(drafts) if draft != coming[k]), len(drafts))


def test_training_unrolls_the_head_as_it_drafts():
    """All rows at once, with the text's tokens for drafts: the states agree for as long as the drafts stand."""
    taught = teacher()
    with torch.no_grad():
        unrolled = list(mtp_heads.unroll(mtp_heads.load_head(MTP_HEADS_DIR), taught, DRAFTS, 60))
    compared = 0
    for anchor in range(20, 60, 3):
        states, drafts = drafted(anchor)
        for k in range(min(DRAFTS, 1 + stands(taught.tokens[0].tolist(), anchor + 2, drafts))):
            assert float((states[:, k] - unrolled[k][:, anchor]).abs().max()) < LIMIT
            compared += k > 0
    assert compared > 5


def test_counted_acceptance_of_the_head_is_that_of_drafting():
    counted = mtp_heads.accepted(mtp_heads.load_head(MTP_HEADS_DIR), teacher(), DRAFTS)[0].tolist()
    tokens = teacher().tokens[0].tolist()
    found = {anchor: stands(tokens, anchor + 2, drafted(anchor)[1]) for anchor in range(30, len(tokens) - 1, 5)}
    assert found == {anchor: counted[anchor] for anchor in found}
    assert len(set(found.values())) > 1
    assert len(counted) == len(tokens) - 1


def test_counted_acceptance_of_the_draft_model_is_that_of_drafting():
    tokens = text()[0][0].tolist()
    counted = draft_model.accepted(small(), text()[0], DRAFTS)[0].tolist()
    found = {}
    for anchor in range(30, len(tokens) - 1, 5):
        known = torch.tensor([tokens[: anchor + 2]])
        options = {"do_sample": False, "max_new_tokens": DRAFTS, "eos_token_id": None, "pad_token_id": 0}
        found[anchor] = stands(tokens, anchor + 2, small().generate(known, **options)[0, anchor + 2 :].tolist())
    assert found == {anchor: counted[anchor] for anchor in found}
    assert len(set(found.values())) > 1


@pytest.mark.parametrize(("drafter", "least"), [("head", 0.7), ("draft_model", 0.5)])
def test_the_committed_weights_draft(drafter, least):
    """One draft a round, on JSON: the share that stands."""
    tokens, prompt = text()
    if drafter == "head":
        counts = mtp_heads.accepted(mtp_heads.load_head(MTP_HEADS_DIR), teacher(), 1)[0]
    else:
        counts = draft_model.accepted(small(), tokens, 1)[0]
    stats = Stats()
    count_rounds(counts[prompt - 1 :].tolist(), prompt, tokens.shape[1] - prompt, 1, stats)
    stats.check()
    assert stats.emitted == tokens.shape[1] - prompt
    assert stats.accepted_per_round > least


def test_the_draft_model_is_a_target_that_export_reads():
    """`load_target` knows nothing of drafting: the same graph serves both roles."""
    checkpoint = Checkpoint.open(DRAFT_MODEL_DIR)
    model, places = load_target(checkpoint)
    load_weights(places, model)
    g, tokens = model.geometry, text()[0]
    tensors = {}
    for index, layer in enumerate(g.layers):
        tensors[f"kv_cache_k_{index}"] = torch.zeros(1, layer.kv_heads, SLOTS, layer.head_dim)
        tensors[f"kv_cache_v_{index}"] = torch.zeros(1, layer.kv_heads, layer.head_dim, SLOTS)
    positions = torch.arange(tokens.shape[1], dtype=torch.int32)
    mask = (torch.arange(SLOTS)[None] <= positions[:, None])[None, None]
    with torch.no_grad():
        kv = StepKV(tensors, positions[:1], positions[-1:], SLOTS, Plain())
        hidden = model.trunk(model.embed_tokens(tokens) * g.hidden**0.5, None, positions, mask, kv)
        found = torch.tanh(model.lm_head(hidden) / g.softcap) * g.softcap
        wanted = small()(tokens).logits
    assert float((found - wanted).abs().max()) < LIMIT


def test_the_draft_model_has_the_targets_tokens():
    checkpoint, wanted = Checkpoint.open(DRAFT_MODEL_DIR), Checkpoint.open(TARGET_DIR)
    assert checkpoint.tokenizer_file.read_bytes() == wanted.tokenizer_file.read_bytes()
    assert checkpoint.tokens() == wanted.tokens()
    assert checkpoint.text_config.vocab_size == wanted.text_config.vocab_size


@pytest.mark.parametrize("domain", ["code", "json"])
def test_assisted_generation_with_the_draft_model_is_plain_generation(domain):
    """transformers' own loop, greedy: drafts are accepted, and the tokens are the target's."""
    written, prompt = text(domain)
    assistant = small()
    assistant.generation_config.num_assistant_tokens = DRAFTS
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    calls: list[int] = []
    hook = target().register_forward_pre_hook(lambda *_: calls.append(1))
    options = {"do_sample": False, "max_new_tokens": 40, "eos_token_id": None, "pad_token_id": 0}
    found = target().generate(written[:, :prompt], assistant_model=assistant, **options)
    hook.remove()
    assert found.tolist() == written.tolist()
    assert len(calls) < 40
