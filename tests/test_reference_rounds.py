"""Round by round against transformers' own generators, on the embedded target: the same drafts, token by token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma4ForCausalLM, MuseGlimmerAssistantModel
from transformers.generation import candidate_generator

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.hf_compat import patch_transformers
from pocketdraft.export.rungs import eager_pair
from pocketdraft.export.tiny import DFLASH_DIR, DRAFT_MODEL_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.text import Tokenizer

CONTEXT, BUDGET = 256, 40
Rounds = list[tuple[int, list[int]]]  # tokens before, drafts


@pytest.fixture(scope="module")
def target() -> Gemma4ForCausalLM:
    patch_transformers()
    return load(Gemma4ForCausalLM, TARGET_DIR)


def load(kind, folder: Path):
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def prompts() -> list[list[int]]:
    tokenizer = Tokenizer(TARGET_DIR / "tokenizer.json", Checkpoint.open(TARGET_DIR).tokens().bos)
    return [tokenizer.encode(prompt.text) for prompt in read_prompts(PROMPTS_FILE, 1)]


def theirs(target, monkeypatch, generator: str, prompt: list[int], **options) -> tuple[list[int], Rounds]:
    """transformers' tokens, and what its generator proposed in each round."""
    kind, rounds = getattr(candidate_generator, generator), []
    propose = kind.get_candidates

    def watched(self, input_ids, *given, **named):
        found = propose(self, input_ids, *given, **named)
        rounds.append((input_ids.shape[1], found[0][0, input_ids.shape[1] :].tolist()))
        return found

    monkeypatch.setattr(kind, "get_candidates", watched)
    with torch.no_grad():
        tokens = target.generate(torch.tensor([prompt]), max_new_tokens=BUDGET, do_sample=False, **options)
    monkeypatch.undo()
    return tokens[0].tolist(), rounds


def ours(engine, drafter: str, drafts: int, prompt: list[int]) -> tuple[list[int], Rounds]:
    session, rounds = open_session(engine, drafter, drafts), []
    propose = session.drafter.propose

    def watched(context, count):
        found = propose(context, count)
        rounds.append((len(context.tokens), list(found.tokens)))
        return found

    session.drafter.propose = watched
    list(session.generate(prompt, BUDGET))
    return session.context.tokens, rounds


def agree(mine: Rounds, reference: Rounds) -> int:
    """How many drafts stand at the same place of both; where both drafted, the shorter is the longer one's start."""
    known, agreed = dict(reference), 0
    for place, drafts in mine:
        if drafts and known.get(place):
            length = min(len(drafts), len(known[place]))
            assert drafts[:length] == known[place][:length]
            agreed += length
    return agreed


def test_dflash_drafts_what_transformers_drafts(target, monkeypatch):
    assistant = load(MuseGlimmerAssistantModel, DFLASH_DIR)
    engine = eager_pair(Checkpoint.open(TARGET_DIR), Checkpoint.open(DFLASH_DIR), context=CONTEXT, drafts=15)
    agreed = 0
    for prompt in prompts():
        options = {"assistant_model": assistant, "speculation_type": "dflash"}
        wanted, reference = theirs(target, monkeypatch, "DFlashTokenCandidateGenerator", prompt, **options)
        tokens, rounds = ours(engine, "dflash", 15, prompt)
        assert tokens == wanted
        agreed += agree(rounds, reference)
    assert agreed > 200


def test_a_draft_model_drafts_what_transformers_drafts(target, monkeypatch):
    assistant = load(Gemma4ForCausalLM, DRAFT_MODEL_DIR)
    assistant.generation_config.num_assistant_tokens = 4
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    engine = eager_pair(Checkpoint.open(TARGET_DIR), Checkpoint.open(DRAFT_MODEL_DIR), context=CONTEXT, drafts=4)
    agreed = 0
    for prompt in prompts():
        wanted, reference = theirs(target, monkeypatch, "AssistedCandidateGenerator", prompt, assistant_model=assistant)
        tokens, rounds = ours(engine, "draft_model", 4, prompt)
        assert tokens == wanted
        agreed += agree(rounds, reference)
    assert agreed > 100
