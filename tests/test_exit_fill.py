"""K/V of the layers that a token skips where it leaves early: what the graphs make of its state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_llama import CONFIGS, Bundle, both
from transformers import Gemma4ForCausalLM, PretrainedConfig
from transformers.models.gemma4.modeling_gemma4 import apply_rotary_pos_emb

from pocketdraft.export.backends.eager import EagerEngine
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.kv_layout import KVLayout
from pocketdraft.export.pipeline import build, load_models, make_steps
from pocketdraft.export.plan import Plan, Recipes
from pocketdraft.export.rungs import eager_pair
from pocketdraft.export.step import Plain, all_weights
from pocketdraft.export.steps import early_exit
from pocketdraft.export.tiny import EXITS_DIR, TARGET_DIR
from pocketdraft.export.tiny.train import load
from pocketdraft.quantize.recipe import load as load_recipe
from pocketdraft.runtime.calm import ExitRule
from pocketdraft.runtime.engine import Engine, open_engine
from pocketdraft.runtime.graphs import KVSteps
from pocketdraft.runtime.leaving import LeavingTarget
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target

ALWAYS = ExitRule("gap", 0.0, 64, None)
PROMPT = np.random.default_rng(0).integers(6, 2000, 60).tolist()
STATE, PLACE = np.random.default_rng(0).standard_normal((1, 1, 64), np.float32), np.array([5], np.int32)
FLOAT = Recipes(*[load_recipe("f32")] * 3)


def left_early(engine: Engine, tokens: int) -> tuple[list[int], dict[str, np.ndarray]]:
    """A text after PROMPT, all tokens of which left early, and their K/V by name, the slots of K and V first."""
    target = LeavingTarget(engine, ALWAYS)
    session = open_session(engine, "none", 0, target)
    list(session.generate(PROMPT, tokens))
    assert target.left == [tokens]
    positions, found = np.arange(len(PROMPT) - 1, session.cache.length), {}
    for name, array in engine.read_kv(session.cache.handle).items():
        rows = np.moveaxis(array[0], 1 if "kv_cache_k" in name else 2, 0)
        found[name] = rows[positions % len(rows)]
    return session.context.tokens[: session.cache.length], found


@torch.no_grad()
def k_v_of(
    model: Gemma4ForCausalLM, layer: int, state: torch.Tensor, start: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers' layer would keep if it were given `state` [1, T, D]: [T, G, d] each, from position `start`."""
    decoder = model.model.layers[layer]
    own, x = decoder.self_attn, decoder.input_layernorm(state)
    heads = (1, x.shape[1], -1, own.head_dim)
    raw = own.k_proj(x).view(heads)
    value = raw if own.v_proj is None else own.v_proj(x).view(heads)
    rope = model.model.rotary_emb(x, start + torch.arange(x.shape[1])[None], own.layer_type)
    return apply_rotary_pos_emb(own.k_norm(raw), *rope, unsqueeze_dim=2)[0], own.v_norm(value)[0]


@pytest.mark.parametrize(("shape", "cut"), [("embedded", 1), ("embedded", 2), ("dense", 2)])
def test_skipped_layers_keep_what_they_make_of_the_state_that_left(make_pair, shape, cut):
    """The dense target's sliding layers are rings, which wrap around, and the values of its last one are its keys."""
    folder: Path = TARGET_DIR if shape == "embedded" else make_pair(shape).target
    engine = eager_pair(Checkpoint.open(folder), context=160, early_exit=(cut,))
    tokens, found = left_early(engine, 40)
    model = load(Gemma4ForCausalLM, folder)
    with torch.no_grad():
        states = model.model(torch.tensor([tokens]), use_cache=False, output_hidden_states=True).hidden_states
    skipped = [layer.layer for layer in engine.manifest.kv if layer.layer >= cut]
    assert len(skipped) == {("embedded", 1): 2, ("embedded", 2): 1, ("dense", 2): 4}[shape, cut]
    for layer in skipped:
        keys, values = (rows[len(PROMPT) - 1 :].numpy() for rows in k_v_of(model, layer, states[cut]))
        np.testing.assert_allclose(found[f"kv_cache_k_{layer}"], keys, atol=1e-4)
        np.testing.assert_allclose(found[f"kv_cache_v_{layer}"], values, atol=1e-4)


def exit_engine(config: PretrainedConfig, steps: dict[int, KVSteps] | None = None) -> EagerEngine:
    """A Llama's kind of target that may be left after the first of its three layers, all of which own K/V."""
    _, target = both(config)
    layout = KVLayout.of(target.geometry, 32, None, steps)
    plan = Plan(Path(), (), Path(), FLOAT, context=32, prefill=(2,), verify=(2,), early_exit=(1,))
    made = early_exit.steps(None, plan, target, layout, Plain())
    return EagerEngine(Bundle(made), made)


def filled(engine: EagerEngine) -> dict[str, torch.Tensor]:
    """K/V once a token in slot 5 has left."""
    cache = engine.new_cache()
    engine.run("exit_fill", {"exit_states": STATE, "input_pos": PLACE}, cache)
    return cache


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_first_layer_that_is_skipped_keeps_what_it_would_have_kept(config):
    """The state that left is its own input; those after it would have been given others."""
    engine = exit_engine(config)
    left, whole = filled(engine), engine.new_cache()
    mask = (np.arange(32) == 5)[None, None, None]
    engine.run("exit_verify_1", {"exit_states": STATE, "input_pos": PLACE, "mask": mask}, whole)
    for name in ("kv_cache_k", "kv_cache_v"):
        torch.testing.assert_close(left[f"{name}_1"], whole[f"{name}_1"])
        assert (left[f"{name}_2"] - whole[f"{name}_2"]).abs().max() > 0.1
        assert not left[f"{name}_0"].any()


def test_int8_k_v_are_those_of_floats_within_half_a_step():
    config = CONFIGS["qwen3"]
    steps = {layer: KVSteps(0.1 + layer / 100, 0.2 + layer / 100) for layer in range(3)}
    floats, int8 = filled(exit_engine(config)), filled(exit_engine(config, steps))
    for layer in (1, 2):
        for name, step in zip(("kv_cache_k", "kv_cache_v"), steps[layer], strict=True):
            own, wanted = int8[f"{name}_{layer}"], floats[f"{name}_{layer}"]
            assert own.dtype == torch.int8
            assert own.any()
            assert (own * step - wanted).abs().max() <= 0.5001 * step


def test_no_two_exits_weights_have_one_name():
    """Those of a name are quantized as one, and shared."""
    models = load_models(Checkpoint.open(TARGET_DIR), Checkpoint.open(EXITS_DIR))
    plan = Plan(TARGET_DIR, (EXITS_DIR,), Path(), FLOAT, early_exit=(2, 3, 5))
    steps, _ = make_steps(plan, models, Plain())
    wanted = {id(module) for step in steps for module in step.weights.values()}
    assert {id(module) for module in all_weights(steps).values()} == wanted
    assert {id(models.drafters["early_exit"].after(cut).mlp.down_proj) for cut in (2, 3, 5)} < wanted


def test_no_onnx_graph_gives_back_by_the_name_that_it_takes():
    """ONNX Runtime does not open it."""
    for graph in eager_pair(Checkpoint.open(TARGET_DIR), context=96, early_exit=(1, 2)).manifest.graphs:
        assert not {graph.returned(one) for one in graph.outputs} & {one.name for one in graph.inputs}


def test_where_no_skipped_layer_owns_k_v_there_is_nothing_to_fill():
    manifest = eager_pair(Checkpoint.open(TARGET_DIR), context=96, early_exit=(3,)).manifest
    assert not manifest.graphs_of("exit_fill")
    assert manifest.graphs_of("exit_draft")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["litert", "onnx"])
def test_a_bundle_fills_in_what_torch_does(tmp_path, backend):
    """Its sliding layers are rings that wrap around; one layer that owns K/V is skipped.

    ExecuTorch's graphs are held to their steps in `test_every_bundle.py`.
    """
    eager = eager_pair(Checkpoint.open(TARGET_DIR), Checkpoint.open(EXITS_DIR), context=160, early_exit=(2,))
    widths = {"context": 160, "prefill": (64,), "verify": (5,)}
    build([Plan(TARGET_DIR, (EXITS_DIR,), tmp_path / "out", FLOAT, backend, **widths, early_exit=(2,))])
    engine = open_engine(tmp_path / "out", 1)
    (tokens, ours), (wanted, theirs) = left_early(engine, 80), left_early(eager, 80)
    assert tokens == wanted
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, atol=1e-3)
    scores = [one.draft_early(one.new_cache(), 9, 0)["score"] for one in (Target(engine), Target(eager))]
    np.testing.assert_allclose(*scores, atol=1e-3)
    engine.close()
