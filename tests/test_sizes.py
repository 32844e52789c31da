"""The public sizes: what their configurations count to, and checkpoints of their shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_sizes import small_pair
from transformers import AutoModelForCausalLM

from pocketdraft.export import sizes
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.models.gemma4 import Geometry
from pocketdraft.export.pair import check_pair
from pocketdraft.export.pipeline import load_models
from pocketdraft.export.sizes import random
from pocketdraft.export.sizes.random import cut, random_checkpoint
from pocketdraft.export.tiny.configs import FULL, SLIDING
from pocketdraft.runtime.errors import PocketdraftError

# In millions, as published: text weights without per-layer embeddings, those read for a token, and the drafter's.
PUBLISHED = {
    "e2b": (2_300, 2_300, 78),
    "e4b": (4_500, 4_500, 78.5),
    "12b": (11_900, 11_900, 420),
    "26b-a4b": (25_200, 3_800, 420),
    "31b": (30_700, 30_700, 470),
}


@pytest.mark.parametrize("size", sizes.names())
def test_parameters_count_to_what_is_published(size):
    target, drafter = sizes.configs(size)
    with torch.device("meta"):
        models = [AutoModelForCausalLM.from_config(config) for config in (target, drafter)]
    counts = {name: weight.numel() for name, weight in models[0].named_parameters()}
    text = sum(count for name, count in counts.items() if "per_layer.weight" not in name)
    experts = sum(count for name, count in counts.items() if ".experts." in name)
    idle = experts - experts * target.top_k_experts // target.num_experts if experts else 0
    found = (text, text - idle, sum(weight.numel() for weight in models[1].parameters()))
    # The card of E4B has 4.5 billion, its configuration 4.64: the 7.5 of converted weights agree with the latter.
    assert [count / 1e6 for count in found] == pytest.approx(PUBLISHED[size], rel=0.035 if size == "e4b" else 0.01)


def test_every_size_has_published_counts_to_be_held_against():
    assert sizes.names() == list(PUBLISHED)


@pytest.mark.parametrize(("asked", "near"), [("26b", "26b-a4b"), ("E2B-it", "e2b"), ("gemma-4-31b", "31b")])
def test_an_unknown_size_names_the_nearest(asked, near):
    with pytest.raises(PocketdraftError, match=f"no size '{asked}' of Gemma 4; did you mean '{near}'"):
        sizes.configs(asked)


def test_an_unknown_size_near_none_lists_all():
    with pytest.raises(PocketdraftError, match="give one of e2b, e4b, 12b, 26b-a4b, 31b"):
        sizes.configs("qwen")


@pytest.mark.parametrize("size", sizes.names())
def test_a_cut_pair_of_any_depth_fits_together(size):
    whole, drafter = sizes.configs(size)
    shared = whole.num_kv_shared_layers / whole.num_hidden_layers
    for layers in range(2, whole.num_hidden_layers + 1):
        target, head = cut((whole, drafter), layers)
        assert target.num_hidden_layers == len(target.layer_types) == layers
        assert layers * shared - 2 < target.num_kv_shared_layers <= layers * shared
        assert set(target.layer_types[: layers - target.num_kv_shared_layers]) == {FULL, SLIDING}
        geometry = Geometry.from_config(target)
        for layer in Geometry.from_config(head.text_config, geometry).layers:
            read = geometry.layers[layer.reads]
            assert (read.kind, read.owns_kv) == (layer.kind, True)
            assert (read.kv_heads, read.head_dim) == (layer.kv_heads, layer.head_dim)
    assert target.layer_types == whole.layer_types


@pytest.mark.parametrize("layers", [1, 31])
def test_a_cut_to_a_depth_that_the_size_does_not_have(layers):
    with pytest.raises(PocketdraftError, match=f"{layers} layers were asked for of a target with 30; give 2 to 30"):
        cut(sizes.configs("26b-a4b"), layers)


@pytest.mark.parametrize("size", sizes.names())
def test_a_random_checkpoint_loads_in_transformers_and_here(size, tmp_path, monkeypatch):
    monkeypatch.setattr(random, "CHUNK", 1024)
    places = random_checkpoint(small_pair(size), tmp_path, layers=4)
    files = [Checkpoint.open(place) for place in places]
    check_pair(*files)
    target = load_models(*files).target
    for place in places:
        model, seen = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
        assert not seen["missing_keys"]
        assert not seen["unexpected_keys"]
        assert not seen["mismatched_keys"]
        weights = dict(model.named_parameters())
        assert len(weights["model.embed_tokens.weight"].unique(dim=0)) == model.config.get_text_config().vocab_size
        name = "model.layers.1.self_attn.q_norm.weight"
        assert torch.allclose(weights[name], torch.tensor(weights[name].numel() ** -0.5), rtol=1e-2)
        assert 0.8 < float(weights["model.layers.0.mlp.down_proj.weight"].detach().std()) * 96**0.5 < 1.3
    assert torch.equal(
        target.embed_tokens.weight, AutoModelForCausalLM.from_pretrained(places[0]).lm_head.weight.float()
    )


def test_a_random_checkpoint_of_many_files_holds_the_same_weights(tmp_path, monkeypatch):
    whole, _ = random_checkpoint(small_pair("e2b"), tmp_path / "whole")
    monkeypatch.setattr(random, "SHARD_BYTES", 300_000)
    split, _ = random_checkpoint(small_pair("e2b"), tmp_path / "split")
    monkeypatch.setattr(random, "CHUNK", 1000)
    other, _ = random_checkpoint(small_pair("e2b"), tmp_path / "other", seed=1)
    assert len(list(split.glob("*.safetensors"))) > 3
    index = json.loads((split / "model.safetensors.index.json").read_text())["weight_map"]
    weights, theirs, others = (
        {name: stored.read() for name, stored in Checkpoint.open(path).tensors.items()}
        for path in (whole, split, other)
    )
    assert weights.keys() == theirs.keys() == index.keys() == others.keys()
    assert all(torch.equal(weights[name], theirs[name]) for name in weights)
    assert not torch.equal(weights["model.embed_tokens.weight"], others["model.embed_tokens.weight"])
    AutoModelForCausalLM.from_pretrained(split)


def test_a_random_checkpoint_replaces_nothing(tmp_path):
    (tmp_path / "drafter").mkdir()
    with pytest.raises(PocketdraftError, match="drafter exists"):
        random_checkpoint(small_pair("12b"), tmp_path)
    assert not (tmp_path / "target").exists()


def test_a_random_checkpoint_larger_than_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(random.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**9}))
    with pytest.raises(PocketdraftError, match=r"take \d+ MB, 1000 MB are free"):
        random_checkpoint("31b", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_package_data_lists_every_configuration():
    """An installed package must find them: `pyproject.toml` says which files go along."""
    import tomllib

    tool = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "pocketdraft.export.sizes" in tool["packages"]
    listed = {path for pattern in tool["package-data"]["pocketdraft.export.sizes"] for path in sizes.HERE.glob(pattern)}
    assert listed == {sizes.HERE / name / f"{part}.json" for name in sizes.names() for part in ("target", "drafter")}
