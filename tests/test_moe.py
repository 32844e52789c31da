"""Experts as tables: what loading and looking them up must not change."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextExperts, Gemma4TextRouter

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.models.gemma4 import load_target
from pocketdraft.export.models.gemma4_moe import Experts, MixtureOfExperts, Router
from pocketdraft.runtime.errors import PocketdraftError

HIDDEN, MOE = 32, MixtureOfExperts(experts=6, top=3, intermediate=8)


@pytest.fixture
def both() -> tuple[Gemma4TextExperts, Experts]:
    """transformers' experts, and ours over the same memory: their tensors are views of our tables."""
    torch.manual_seed(0)
    config = Gemma4TextConfig(hidden_size=HIDDEN, num_experts=MOE.experts, moe_intermediate_size=MOE.intermediate)
    config._experts_implementation = "eager"
    theirs, ours = Gemma4TextExperts(config), Experts(HIDDEN, MOE)
    for name, shape in ours.checkpoint_shapes.items():
        table = getattr(ours, name).weight
        table.data.normal_(0.0, table.shape[1] ** -0.5)
        setattr(theirs, name, torch.nn.Parameter(table.data.view(shape)))
    return theirs, ours


@pytest.mark.parametrize("tokens", [1, 5])
@torch.no_grad()
def test_experts_agree_with_transformers_whoever_takes_whom(both, tokens):
    theirs, ours = both
    x, weights = torch.randn(tokens, HIDDEN), torch.rand(tokens, MOE.top)
    # The first and the last expert, and two tokens with the same ones.
    chosen = torch.tensor([[5, 0, 3], [1, 2, 4], [5, 0, 3], [0, 1, 2], [3, 4, 5]])[:tokens]
    wanted = theirs(x, chosen, weights)
    found = ours(x, weights, chosen.to(torch.int32))
    assert torch.allclose(found, wanted, atol=1e-5)


@torch.no_grad()
def test_all_tokens_at_once_are_each_token_alone(both):
    """What a graph of symbolic width does, against what one of a fixed width does."""
    _, ours = both
    x, weights = torch.randn(5, HIDDEN), torch.rand(5, MOE.top)
    chosen = torch.stack([torch.randperm(MOE.experts)[: MOE.top] for _ in range(5)]).to(torch.int32)
    assert torch.allclose(ours._mix(x, weights, chosen), ours(x, weights, chosen), atol=1e-6)


@torch.no_grad()
def test_infinite_activations_read_no_other_experts_rows(both):
    """Lookups wait for the products before them by adding a zero made of these, which infinity must not spoil."""
    _, ours = both
    x = torch.full((2, HIDDEN), float("inf"))
    x[1] = 1.0
    chosen = torch.tensor([[0, 1, 2], [3, 4, 5]], dtype=torch.int32)
    weights = torch.ones(2, MOE.top)
    assert torch.allclose(ours(x, weights, chosen)[1], ours(x[1:], weights[1:], chosen[1:])[0])


@torch.no_grad()
def test_the_router_weighs_and_chooses_as_transformers_does():
    torch.manual_seed(0)
    config = Gemma4TextConfig(hidden_size=HIDDEN, num_experts=MOE.experts, top_k_experts=MOE.top)
    theirs, ours = Gemma4TextRouter(config), Router(HIDDEN, MOE, config.rms_norm_eps)
    for weight in theirs.parameters():
        weight.normal_(1.0, 0.5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(7, HIDDEN)
    _, weights, chosen = theirs(x)
    found, taken = ours(x)
    assert torch.equal(taken, chosen)
    assert torch.allclose(found, weights, atol=1e-6)


def edited(folder, tmp_path, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    return Checkpoint.open(tmp_path)


NAME = "model.layers.1.experts.down_proj"


def test_mis_shaped_experts_show_both_shapes(make_pair, tmp_path):
    checkpoint = edited(make_pair("26b-a4b").target, tmp_path, lambda w: w.update({NAME: torch.zeros(16, 24, 64)}))
    with pytest.raises(PocketdraftError, match=r"\[16, 24, 64\], config.json asks for \[16, 64, 24\]"):
        load_target(checkpoint)


def test_missing_experts_are_named(make_pair, tmp_path):
    checkpoint = edited(make_pair("26b-a4b").target, tmp_path, lambda w: w.pop(NAME))
    with pytest.raises(PocketdraftError, match=r"lacks the weight layers\.1\.experts\.down_proj"):
        load_target(checkpoint)


def test_experts_of_a_dense_configuration_are_an_extra_weight(make_pair, tmp_path):
    checkpoint = edited(make_pair("26b-a4b").target, tmp_path, lambda w: None)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"enable_moe_block": False}))
    with pytest.raises(PocketdraftError, match="does not know"):
        load_target(Checkpoint.open(checkpoint.folder))
