"""Checkpoints that are not what they should be: the weight or the value is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.families import load_target
from pocketdraft.export.pair import check_pair
from pocketdraft.export.pipeline import load_models
from pocketdraft.runtime.errors import PocketdraftError

WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def pair(make_pair, tmp_path: Path) -> Path:
    """A copy that a test may spoil: folders `target` and `drafter`."""
    original = make_pair("shared")
    shutil.copytree(original.target, tmp_path / "target")
    shutil.copytree(original.drafter, tmp_path / "drafter")
    return tmp_path


def edit(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def refusal(pair: Path) -> str:
    with pytest.raises(PocketdraftError) as caught:
        target, drafter = Checkpoint.open(pair / "target"), Checkpoint.open(pair / "drafter")
        check_pair(target, drafter)
        load_models(target, drafter)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_good_pair_loads(pair):
    target, drafter = Checkpoint.open(pair / "target"), Checkpoint.open(pair / "drafter")
    check_pair(target, drafter)
    load_models(target, drafter)


def test_a_folder_without_config_is_no_checkpoint(pair):
    (pair / "target" / "config.json").unlink()
    assert "is no checkpoint" in refusal(pair)


@pytest.mark.parametrize(("kind", "said"), [("mistral", "A mistral was given"), ("gemma5", "model_type 'gemma5'")])
def test_another_architecture_is_named(pair, kind, said):
    path = pair / "target" / "config.json"
    path.write_text(json.dumps({"model_type": kind}))
    assert said in refusal(pair)


def test_config_that_is_not_json(pair):
    (pair / "target" / "config.json").write_text("{")
    assert "is not JSON" in refusal(pair)


def test_a_truncated_file_is_named(pair):
    path = pair / "target" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "model.safetensors is damaged" in refusal(pair)


def test_a_corrupt_header_is_named(pair):
    path = pair / "drafter" / "model.safetensors"
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])
    assert "drafter/model.safetensors is damaged" in refusal(pair)


def test_no_weights_at_all(pair):
    (pair / "target" / "model.safetensors").unlink()
    assert "no *.safetensors" in refusal(pair)


def test_a_missing_weight_is_named(pair):
    edit(pair / "target", lambda weights: weights.pop(WEIGHT))
    assert "lacks the weight layers.1.mlp.up_proj.weight" in refusal(pair)


def test_an_extra_weight_is_named(pair):
    edit(pair / "target", lambda weights: weights.update({"model.layers.9.extra": torch.zeros(1)}))
    assert "model.layers.9.extra" in refusal(pair)


def test_a_mis_shaped_weight_shows_both_shapes(pair):
    edit(pair / "target", lambda weights: weights.update({WEIGHT: torch.zeros(3, 5)}))
    assert "[3, 5], config.json asks for [256, 128]" in refusal(pair)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(pair, value):
    edit(pair / "drafter", lambda weights: weights["pre_projection.weight"].view(-1)[7].fill_(value))
    assert "pre_projection.weight holds NaN or infinity" in refusal(pair)


def test_k_and_v_weights_of_kv_shared_layers_are_left_alone(pair):
    edit(pair / "target", lambda w: w.update({"model.layers.4.self_attn.k_proj.weight": torch.zeros(32, 128)}))
    load_target(Checkpoint.open(pair / "target"))


def test_k_weights_of_a_layer_without_sharing_must_fit(pair):
    edit(pair / "target", lambda w: w.pop("model.layers.1.self_attn.k_proj.weight"))
    assert "layers.1.self_attn.k_proj.weight" in refusal(pair)


def test_sharded_weights_load(pair):
    weights = load_file(pair / "target" / "model.safetensors")
    names = sorted(weights)
    for part, chosen in enumerate((names[::2], names[1::2])):
        save_file({n: weights[n] for n in chosen}, pair / "target" / f"model-{part}.safetensors")
    (pair / "target" / "model.safetensors").unlink()
    load_target(Checkpoint.open(pair / "target"))


def test_a_fused_checkpoint_loads_the_same_text_model(pair):
    """Gemma4ForConditionalGeneration keeps the text model under `model.language_model`, beside other towers."""
    drafter = Checkpoint.open(pair / "drafter")
    plain = load_models(Checkpoint.open(pair / "target"), drafter).target.state_dict()
    weights = load_file(pair / "target" / "model.safetensors")
    fused = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in weights.items()}
    fused["model.vision_tower.patch.weight"] = torch.zeros(2, 2)
    fused["model.embed_vision.embedding_projection.weight"] = torch.zeros(2, 2)
    save_file(fused, pair / "target" / "model.safetensors")
    path = pair / "target" / "config.json"
    path.write_text(json.dumps({"model_type": "gemma4", "text_config": json.loads(path.read_text())}))
    loaded = load_models(Checkpoint.open(pair / "target"), drafter).target.state_dict()
    assert loaded.keys() == plain.keys()
    assert all(torch.equal(loaded[name], plain[name]) for name in plain)


def drafter_text(pair: Path, **fields) -> None:
    path = pair / "drafter" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"] |= fields
    path.write_text(json.dumps(config))


def test_swapped_folders_are_told(pair):
    (pair / "target").rename(pair / "x")
    (pair / "drafter").rename(pair / "target")
    (pair / "x").rename(pair / "drafter")
    assert "the other way round" in refusal(pair)


def test_a_drafter_with_another_vocabulary(pair):
    drafter_text(pair, vocab_size=4096)
    assert "vocabulary size 4096, the target" in refusal(pair)
    assert "has 2048" in refusal(pair)


def test_a_drafter_of_another_backbone(pair):
    path = pair / "drafter" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"backbone_hidden_size": 256}))
    assert "backbone hidden size 256" in refusal(pair)


def test_a_drafter_with_another_window(pair):
    drafter_text(pair, sliding_window=512)
    assert "sliding window 512" in refusal(pair)


def test_a_drafter_of_the_dense_shape_for_a_shared_target(pair, make_pair):
    shutil.rmtree(pair / "drafter")
    shutil.copytree(make_pair("dense").drafter, pair / "drafter")
    assert "backbone hidden size 64, the target" in refusal(pair)


def test_a_drafter_with_another_tokenizer_names_the_token(pair):
    path = pair / "drafter" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))
    assert "another tokenizer" in refusal(pair)


def test_a_target_without_tokenizer(pair):
    (pair / "target" / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(pair)


@pytest.mark.parametrize(
    ("tokenizer", "bos"),
    [
        ({}, 2),
        ({"add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"}, 2),
        ({"add_bos_token": False}, None),
        ({"tokenizer_class": "GPT2Tokenizer"}, None),
    ],
)
def test_the_first_token_is_one_that_the_tokenizer_puts(pair, tokenizer, bos):
    (pair / "target" / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert Checkpoint.open(pair / "target").tokens().bos == bos
