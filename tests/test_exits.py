"""Exits of the embedded target: what they read, what they say, and what they leave alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Gemma4ForCausalLM

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.drafting import load_drafter
from pocketdraft.export.families import family_of, load_target, make_target
from pocketdraft.export.hf_compat import patch_transformers
from pocketdraft.export.models.decoder import Target
from pocketdraft.export.models.exits import Exits, exit_logits
from pocketdraft.export.rungs import eager_pair
from pocketdraft.export.stored import load as load_weights
from pocketdraft.export.tiny import EXITS_DIR, PROMPTS_FILE, TARGET_DIR, train_exits
from pocketdraft.export.tiny.corpus import DOMAINS
from pocketdraft.export.tiny.train import load
from pocketdraft.export.tiny.training import LENGTH, Batches
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.target import Target as DraftingTarget
from pocketdraft.runtime.text import Tokenizer


@pytest.fixture(scope="module")
def reference() -> Gemma4ForCausalLM:
    patch_transformers()
    return load(Gemma4ForCausalLM, TARGET_DIR)


@pytest.fixture(scope="module")
def target() -> Target:
    target, places = load_target(Checkpoint.open(TARGET_DIR))
    load_weights(places, target)
    return target


@pytest.fixture(scope="module")
def exits(target: Target) -> Exits:
    exits, places = load_drafter(Checkpoint.open(EXITS_DIR), target)
    load_weights(places, exits)
    return exits


@pytest.fixture(scope="module")
def texts() -> Tensor:
    tokenizer = Tokenizer(TARGET_DIR / "tokenizer.json", None)
    return torch.tensor([tokenizer.encode(prompt.text)[:48] for prompt in read_prompts(PROMPTS_FILE, 4)])


@pytest.fixture
def work(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for domain in DOMAINS:
        np.save(tmp_path / f"{domain}.training.npy", random.integers(3, 2048, 2 * LENGTH))
    return tmp_path


def edited(folder: Path, weights=lambda stored: stored, **config) -> Checkpoint:
    """A copy of the published exits with other weights and fields."""
    shutil.copytree(EXITS_DIR, folder, dirs_exist_ok=True)
    save_file(weights(load_file(EXITS_DIR / "model.safetensors")), folder / "model.safetensors")
    fields = json.loads((EXITS_DIR / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, **config}))
    return Checkpoint.open(folder)


# --- what they say


@pytest.mark.parametrize("cut", [2, 3, 4, 5])
def test_logits_are_those_over_transformers_own_norm_head_and_softcap(reference, target, exits, texts, cut):
    with torch.no_grad():
        states, _ = train_exits.teach(reference, texts[:1])
        wanted = train_exits.exit_logits(reference, exits.after(cut), states[cut])
        torch.testing.assert_close(exit_logits(target, exits, cut, states[cut]), wanted, atol=2e-5, rtol=1e-5)


def test_without_exits_the_state_goes_through_the_final_norm_and_the_head_as_it_is(reference, target, exits, texts):
    with torch.no_grad():
        before = {}
        last = reference.model.layers[-1]
        handle = last.register_forward_hook(lambda module, inputs, output: before.update(state=output))
        wanted = reference(input_ids=texts[:1], use_cache=False).logits
        handle.remove()
        torch.testing.assert_close(exit_logits(target, None, 6, before["state"]), wanted, atol=2e-5, rtol=1e-5)
        assert (exit_logits(target, exits, 5, before["state"]) - wanted).abs().max() > 0.1


def test_a_trained_exit_agrees_with_the_last_layer_more_than_the_bare_state_and_a_deeper_one_more(
    reference, exits, texts
):
    text = reference.generate(texts, max_new_tokens=32, min_new_tokens=32, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        states, wanted = train_exits.teach(reference, text)
        choice, shares = wanted.argmax(-1), []
        for cut in exits.cuts:
            bare, own = (
                (train_exits.exit_logits(reference, each, states[cut]).argmax(-1) == choice).float().mean().item()
                for each in (None, exits.after(cut))
            )
            assert own > bare + 0.05
            shares.append(own)
    assert shares == sorted(shares)


def test_a_classifier_is_surer_where_its_exit_is_right(reference, exits, texts):
    with torch.no_grad():
        states, wanted = train_exits.teach(reference, texts)
        for cut in exits.cuts:
            right = train_exits.exit_logits(reference, exits.after(cut), states[cut]).argmax(-1) == wanted.argmax(-1)
            score = exits.after(cut).score(states[cut])
            assert score.shape == right.shape
            torch.testing.assert_close(exits.after(cut).score(3 * states[cut]), score, atol=1e-3, rtol=1e-3)
            above = (score[right][:, None] > score[~right][None]).float().mean()  # the area under the ROC curve
            assert above > 0.65


def test_the_graph_that_drafts_gives_its_state_and_what_the_classifier_says_of_it(reference, exits, texts):
    engine = eager_pair(Checkpoint.open(TARGET_DIR), Checkpoint.open(EXITS_DIR), context=64)
    target = DraftingTarget(engine)
    cache = target.new_cache()
    early = [target.draft_early(cache, token, ahead) for ahead, token in enumerate(texts[0, :8].tolist())]
    with torch.no_grad():
        states, _ = train_exits.teach(reference, texts[:1, :8])
        wanted = exits.after(3).score(states[3])
    for name, whole in (("exit_states", states[3]), ("score", wanted)):
        ours = torch.from_numpy(np.concatenate([one[name] for one in early], 1))
        torch.testing.assert_close(ours, whole, atol=2e-4, rtol=1e-4)


# --- what their training leaves alone


def test_training_changes_the_exits_then_the_classifiers_and_never_the_target(reference, work):
    before = {name: weight.clone() for name, weight in reference.state_dict().items()}
    written = torch.randint(3, 2048, (8, LENGTH), generator=torch.Generator().manual_seed(0))
    trained = train_exits.train_exits(reference, Batches(work, "training", 0), written, 1, cuts=(3,))
    half = {name: weight.clone() for name, weight in trained.state_dict().items()}
    assert half["exits.3.mlp.down_proj.weight"].abs().max() > 0
    assert half["exits.3.classifier.weight"].abs().max() == half["exits.3.classifier_bias"].abs().max() == 0
    train_exits.train_classifiers(reference, trained, Batches(work, "training", 0), written, 1)
    changed = {name for name, weight in trained.state_dict().items() if not weight.equal(half[name])}
    assert changed == {"exits.3.classifier.weight", "exits.3.classifier_bias"}
    assert all(weight.equal(before[name]) for name, weight in reference.state_dict().items())


def test_untrained_exits_say_what_the_bare_state_does(reference, texts):
    fresh = train_exits.new_exits(reference, (4,))
    with torch.no_grad():
        states, _ = train_exits.teach(reference, texts[:1])
        assert fresh.after(4)(states[4]).equal(states[4])
        assert fresh.after(4).score(states[4]).eq(0).all()


def test_published_exits_are_read_back(reference, texts, tmp_path):
    fresh = train_exits.new_exits(reference, (1, 5))
    train_exits.publish(fresh, tmp_path)
    read, places = load_drafter(Checkpoint.open(tmp_path), make_target(reference.config))
    load_weights(places, read)
    assert read.cuts == (1, 5)
    for name, weight in read.state_dict().items():
        torch.testing.assert_close(weight, fresh.state_dict()[name], atol=0, rtol=2**-8)


# --- what is refused


def test_an_exit_that_was_not_trained_is_refused_by_its_number(exits):
    with pytest.raises(PocketdraftError, match="no exit after layer 1; exits were trained after 2, 3, 4, 5"):
        exits.after(1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 64}, "hidden size 64, the target 128"),
        ({"cuts": [2, 6]}, r"after layers \[2, 6\], the target's may lie after 1 to 5"),
        ({"cuts": [0]}, r"after layers \[0\]"),
        ({"cuts": []}, r"after layers \[\]"),
        ({"cuts": [3, 2]}, r"after layers \[3, 2\]"),
        ({"cuts": [2, 2]}, r"after layers \[2, 2\]"),
        ({"intermediate_size": 64}, "has shape"),
    ],
)
def test_exits_of_another_target_are_refused(target, tmp_path, change, said):
    with pytest.raises(PocketdraftError, match=said):
        load_drafter(edited(tmp_path, **change), target)


def test_a_missing_and_an_unknown_weight_are_named(target, tmp_path):
    def without(stored):
        return {name: weight for name, weight in stored.items() if name != "exits.3.norm.weight"}

    with pytest.raises(PocketdraftError, match=r"lacks the weight exits\.3\.norm\.weight"):
        load_drafter(edited(tmp_path / "a", without), target)
    with pytest.raises(PocketdraftError, match=r"weight exits\.9\.norm\.weight that pocketdraft_exits does not know"):
        load_drafter(edited(tmp_path / "b", lambda s: {**s, "exits.9.norm.weight": torch.ones(128)}), target)


def test_exits_are_no_target():
    with pytest.raises(PocketdraftError, match="A pocketdraft_exits was given as the target"):
        family_of(Checkpoint.open(EXITS_DIR).config)
