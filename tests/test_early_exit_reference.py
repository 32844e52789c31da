"""LayerSkip's self-speculation in transformers (`assistant_early_exit`) is what we take it for.

Its text is plain decoding's, and it accepts, round by round, what a small loop does that drafts with the first E
layers, the final norm and the head. That loop keeps no cache: a fault in transformers' cache handling could not hide.
"""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma4TextConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.generation.candidate_generator import EarlyExitCandidateGenerator

from pocketdraft.export.hf_compat import patch_for_training
from pocketdraft.export.tiny.configs import dense_target_config, drafter_config, random_pair, target_config

LAYERS, NEW = 6, 32
PROMPT = torch.arange(40, 64)[None]


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.08,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def gemma4(config: Gemma4TextConfig) -> PreTrainedModel:
    config.sliding_window = 16
    return random_pair(config, drafter_config(config, centroids=False), seed=0)[0]


def shared() -> PreTrainedModel:
    config = target_config()
    config.hidden_size_per_layer_input = 0
    patch_for_training()  # which lets a target without them run
    return gemma4(config)


MODELS = {"llama": llama, "dense": lambda: gemma4(dense_target_config()), "shared": shared}


@torch.no_grad()
def after(model: PreTrainedModel, tokens: list[int], layers: int) -> int:
    """The argmax after the first `layers` layers, the final norm and the head."""
    trunk = model.model
    states = {}
    handle = trunk.layers[layers - 1].register_forward_hook(lambda module, inputs, output: states.update(last=output))
    trunk(input_ids=torch.tensor([tokens]), use_cache=False)
    handle.remove()
    return int(model.lm_head(trunk.norm(states["last"][:, -1])).argmax(-1))  # a softcap moves no argmax


def rounds(model: PreTrainedModel, layers: int, drafts: int) -> tuple[list[int], list[int]]:
    """The new tokens, and how many drafts each round accepted. A round's own token may be the last, a draft may not."""
    tokens, accepted = PROMPT[0].tolist(), []
    length = len(tokens) + NEW
    while len(tokens) < length:
        draft: list[int] = []
        while len(draft) < min(drafts, length - len(tokens) - 1):
            draft.append(after(model, tokens + draft, layers))
        count = 0
        while (own := after(model, tokens + draft[:count], LAYERS)) == [*draft, None][count]:
            count += 1
        tokens += [*draft[:count], own]
        accepted.append(count)
    return tokens[PROMPT.shape[1] :], accepted


@pytest.mark.parametrize(("layers", "drafts"), [(3, 4), (5, 2), (5, 4)])
@pytest.mark.parametrize("kind", MODELS)
def test_transformers_accepts_what_the_first_layers_norm_and_head_draft(kind, layers, drafts, monkeypatch):
    model, accepted = MODELS[kind](), []
    settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = model.generate(PROMPT, **settings)[0, PROMPT.shape[1] :].tolist()
    monkeypatch.setattr(
        EarlyExitCandidateGenerator,
        "update_candidate_strategy",
        lambda self, tokens, scores, count: accepted.append(int(count)),
    )
    model.generation_config.num_assistant_tokens = drafts
    model.generation_config.num_assistant_tokens_schedule = "constant"
    model.generation_config.assistant_confidence_threshold = 0.0
    text = model.generate(PROMPT, assistant_early_exit=layers, **settings)[0, PROMPT.shape[1] :].tolist()
    ours, counts = rounds(model, layers, drafts)
    assert text == plain == ours
    assert accepted == counts
    assert len(set(counts)) > 1  # neither always right nor always wrong


def test_transformers_cannot_leave_a_target_with_per_layer_embeddings_early():
    """It cuts them by the number of layers that it pretends the target has. Once this fails, add the case above."""
    with pytest.raises(RuntimeError, match="shape"):
        gemma4(target_config()).generate(PROMPT, assistant_early_exit=3, max_new_tokens=2, do_sample=False)
