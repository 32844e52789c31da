from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Gemma4ForCausalLM

from pocketdraft.export import calibrate as module
from pocketdraft.export.backends.eager import EagerEngine
from pocketdraft.export.backends.litert import quantize_steps
from pocketdraft.export.calibrate import Calibration, calibrate, through_target
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.layerwise import inputs_of
from pocketdraft.export.pipeline import load_models, make_steps
from pocketdraft.export.plan import Plan, Recipes
from pocketdraft.export.step import Plain, all_weights
from pocketdraft.export.tiny import DRAFTER_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.quantize.recipe import Recipe, Rule, load
from pocketdraft.quantize.weights import error_of, on_grid
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.text import Tokenizer

WIDTH = 48
# int4 for all but the tables, which have no inputs to be calibrated on.
RULES = (
    Rule(weights="*embedder.table", dtype="int8"),
    Rule(weights="*per_layer_projection", dtype="int4"),
    Rule(weights="*", dtype="int4", block=32),
)
RECIPE = Recipe(name="int4", rule=RULES)


def plan_of(recipe: Recipe, out: Path, target: Path = TARGET_DIR, drafter: Path = DRAFTER_DIR) -> Plan:
    recipes = Recipes(recipe, recipe, recipe)
    return Plan(target, drafter, out, recipes, context=96, prefill=(16,), verify=(5, WIDTH))


def texts() -> list[list[int]]:
    files = Checkpoint.open(TARGET_DIR)
    tokenizer = Tokenizer(files.tokenizer_file, files.tokens().bos)
    return [tokenizer.encode(prompt.text) for prompt in read_prompts(PROMPTS_FILE)]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("calibrated") / "pair"
    calibrate(plan_of(RECIPE, out), texts()[::2])
    return out


def weights_of(target: Path, drafter: Path) -> dict[str, np.ndarray]:
    models = load_models(Checkpoint.open(target), Checkpoint.open(drafter))
    steps, _ = make_steps(plan_of(load("f32"), Path()), models, Plain())
    return {name: module.weight.numpy() for name, module in all_weights(steps).items()}


@torch.no_grad()
def log_probabilities(target: Path, recipe: Recipe) -> torch.Tensor:
    plan = plan_of(recipe, Path(), target)
    steps, _ = make_steps(plan, load_models(Checkpoint.open(target), Checkpoint.open(DRAFTER_DIR)), Plain())
    quantize_steps(steps, plan.recipes)
    by_name = {step.spec.name: step for step in steps}
    verify, found = by_name[f"verify_{WIDTH}"], []
    for text in texts()[1::8]:
        feed, ids = verify.sample_inputs(), torch.tensor([text[:WIDTH]], dtype=torch.int32)
        feed["embeddings"] = by_name["embedder"].module(token_ids=ids)["embeddings"]
        feed["per_layer_embeddings"] = by_name["per_layer_embedder"].module(token_ids=ids)["embeddings"]
        feed["input_pos"] = torch.arange(WIDTH, dtype=torch.int32)
        feed["mask"] = (torch.arange(96) <= feed["input_pos"][:, None])[None, None]
        found.append(verify.module(**feed)["logits"][0].log_softmax(-1))
    return torch.cat(found)


def test_calibrated_weights_lie_on_their_rules_grid_and_the_others_are_the_same(calibrated):
    before, after = weights_of(TARGET_DIR, DRAFTER_DIR), weights_of(calibrated / "target", calibrated / "drafter")
    assert before.keys() == after.keys()
    for name, weight in after.items():
        rule = RECIPE.rule_for(name)
        if rule.bits == 4 and name != "drafter.head":
            assert on_grid(weight, rule) == 1, name
            assert error_of(name, weight, rule).sqnr_db > 50, name
            assert not np.array_equal(weight, before[name]), name
        else:
            np.testing.assert_array_equal(weight, before[name], err_msg=name)


def test_the_calibrated_target_is_nearer_to_the_float_one_on_texts_it_has_not_seen(calibrated):
    wanted = log_probabilities(TARGET_DIR, load("f32"))

    def kl(now: torch.Tensor) -> float:
        return float((wanted.exp() * (wanted - now)).sum(-1).mean())

    rounded = kl(log_probabilities(TARGET_DIR, RECIPE))
    assert kl(log_probabilities(calibrated / "target", RECIPE)) < 0.85 * rounded


def test_a_calibrated_head_is_a_tensor_of_its_own_and_transformers_loads_it(calibrated):
    weights = weights_of(calibrated / "target", calibrated / "drafter")
    assert not np.array_equal(weights["target.lm_head"], weights["embedder.table"])
    theirs = Gemma4ForCausalLM.from_pretrained(calibrated / "target", dtype=torch.float32)
    np.testing.assert_array_equal(theirs.lm_head.weight.detach().numpy(), weights["target.lm_head"])
    np.testing.assert_array_equal(theirs.model.embed_tokens.weight.detach().numpy(), weights["embedder.table"])


def test_the_short_end_of_a_long_text_does_no_harm(tmp_path):
    """A text of LONGEST + 2 tokens leaves a piece of two, from which no draft may start."""
    long = [token for text in texts() for token in text]
    pieces = [long[i * 258 : (i + 1) * 258] for i in range(5)]
    calibrate(plan_of(RECIPE, tmp_path / "pair"), pieces)
    assert (tmp_path / "pair" / "drafter" / "model.safetensors").is_file()


def test_too_little_text_is_refused_with_both_numbers(tmp_path):
    with pytest.raises(PocketdraftError, match=r"have 12 tokens, 1024 are the least"):
        calibrate(plan_of(RECIPE, tmp_path / "pair"), [list(range(3, 15))])


def test_what_was_calibrated_on_is_recorded(calibrated):
    record = json.loads((calibrated / "calibration.json").read_text())
    assert record["tokens"] == sum(map(len, texts()[::2]))
    assert Recipe.model_validate(record["recipe"]["target"]) == RECIPE


def test_texts_run_layer_by_layer_as_the_graphs_run_them(tmp_path):
    """Hidden states of the target, and what the drafter is fed at each depth of a draft, with nothing quantized."""
    plan, text = plan_of(load("f32"), tmp_path), texts()[0][:40]
    files = Checkpoint.open(TARGET_DIR), Checkpoint.open(DRAFTER_DIR)
    with torch.no_grad():
        work = Calibration(plan, files, tmp_path)
        (passed,) = through_target(work, [text], lambda *_: None)
        fed = []
        pre_projection = {"fed": work.draft_step.pre_projection}
        with module.loaded(work.models.stored, work.models.drafter), inputs_of(pre_projection) as now:
            for _ in module._drafts(work, passed, 3):
                fed.append(now["fed"].numpy())
    steps, _ = make_steps(plan, load_models(*files), Plain())
    engine = EagerEngine(None, steps)
    place = 3 + 4 * module.EVERY
    cache, rows = engine.new_cache(), []
    for position, token in enumerate(text[: place + 1]):
        ids = np.array([[token]], np.int32)
        inputs = {"embeddings": engine.run("embedder", {"token_ids": ids})["embeddings"]}
        inputs["per_layer_embeddings"] = engine.run("per_layer_embedder", {"token_ids": ids})["embeddings"]
        inputs |= {"input_pos": np.array([position], np.int32), "mask": (np.arange(96) <= position)[None, None, None]}
        rows.append(engine.run("decode", inputs, cache)["activations"])
    np.testing.assert_allclose(passed.now.x[:, : place + 1].numpy(), np.concatenate(rows, 1), atol=2e-4)
    token, hidden = text[place + 1], rows[-1]
    for depth in range(module.DEPTHS):
        embedding = engine.run("embedder", {"token_ids": np.array([[token]], np.int32)})["embeddings"]
        activations = np.concatenate([embedding, hidden], -1)
        np.testing.assert_allclose(fed[depth][:, 4], activations[0], atol=2e-4)
        draft = {"activations": activations, "input_pos": np.array([place], np.int32)}
        outputs = engine.run("mtp_drafter", draft | {"mask": (np.arange(96) <= place)[None, None, None]}, cache)
        token, hidden = int(outputs["logits"].argmax()), outputs["projected_activations"]
