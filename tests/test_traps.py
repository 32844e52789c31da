"""Porting traps: each is put back into our graphs, and the parity ladder must see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WIDTHS, Pair
from scripted import scripted_manifest
from transformers import (
    Gemma4Config,
    Gemma4ForCausalLM,
    Gemma4ForConditionalGeneration,
    Gemma4UnifiedAudioConfig,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForCausalLM,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedVisionConfig,
    Gemma4VisionConfig,
)

from pocketdraft.export import sizes
from pocketdraft.export.backends.eager import EagerEngine
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.models import decoder, gemma4, gemma4_moe
from pocketdraft.export.models.masks import MASKED, visible
from pocketdraft.export.pipeline import load_models, make_steps
from pocketdraft.export.plan import Plan, Recipes
from pocketdraft.export.reference import TransformersEngine
from pocketdraft.export.step import Plain
from pocketdraft.export.steps import mtp, target
from pocketdraft.quantize.recipe import load
from pocketdraft.runtime.drafter_specs import DrafterSpecs, MTPSpec
from pocketdraft.runtime.engine import Engine
from pocketdraft.runtime.ladder import climb, compare, tokens_needed
from pocketdraft.runtime.manifest import Manifest

LIMIT = 1e-3


@pytest.fixture(scope="module")
def reference(make_pair):
    """What transformers gives, by shape: computed once, compared with every broken variant."""
    done = {}

    def of(shape: str):
        if shape not in done:
            pair = make_pair(shape)
            manifest, _ = steps_of(pair, shape)
            engine = TransformersEngine(manifest, Checkpoint.open(pair.target), Checkpoint.open(pair.drafter))
            tokens = np.random.default_rng(0).integers(3, manifest.vocab_size, tokens_needed(manifest)).tolist()
            done[shape] = (*climb(manifest, engine, tokens, None), tokens)
        return done[shape]

    return of


def steps_of(pair: Pair, shape: str, head: str = "auto") -> tuple[Manifest, list]:
    recipe = load("f32")
    plan = Plan(pair.target, (pair.drafter,), Path(), Recipes(recipe, recipe, recipe), head=head, **WIDTHS)
    files = Checkpoint.open(pair.target), Checkpoint.open(pair.drafter)
    steps, layout = make_steps(plan, load_models(*files), Plain())
    geometry = gemma4.Geometry.from_config(files[0].text_config)
    drafter = MTPSpec(
        head="centroid" if files[1].config.use_ordered_embeddings and head == "auto" else "dense",
        position="pending",
        kv_full=geometry.last_owner("full"),
        kv_sliding=geometry.last_owner("sliding"),
    )
    blank = scripted_manifest().model_dump()
    blank |= {"graphs": [step.spec for step in steps], "kv": layout.layers, "drafters": DrafterSpecs(mtp=drafter)}
    blank |= {"vocab_size": geometry.vocab, "context_length": layout.context}
    return Manifest.model_validate(blank), steps


def failing_graphs(reference, make_pair: Callable[[str], Pair], shape: str) -> set[str]:
    outputs, feed, tokens = reference(shape)
    manifest, steps = steps_of(make_pair(shape), shape)
    ours, _ = climb(manifest, EagerEngine(manifest, steps), tokens, feed)
    return {d.graph for d in compare(outputs, ours, dict.fromkeys(ours, LIMIT)) if not d.passed}


def disagreeing(reference: Engine, ours: Engine) -> set[str]:
    manifest = ours.manifest
    tokens = np.random.default_rng(0).integers(3, manifest.vocab_size, tokens_needed(manifest)).tolist()
    wanted, feed = climb(manifest, reference, tokens, None)
    found, _ = climb(manifest, ours, tokens, feed)
    return {d.graph for d in compare(wanted, found, dict.fromkeys(found, LIMIT)) if not d.passed}


def test_the_dense_head_of_a_centroid_checkpoint_agrees_with_transformers(make_pair):
    pair = make_pair("shared")
    manifest, steps = steps_of(pair, "shared", head="dense")
    reference = TransformersEngine(manifest, Checkpoint.open(pair.target), Checkpoint.open(pair.drafter))
    assert disagreeing(reference, EagerEngine(manifest, steps)) == set()


def test_a_fused_checkpoint_agrees_with_transformers_fused_model(make_pair, tmp_path):
    """`Gemma4ForConditionalGeneration`: the text model lies one level deeper, beside a vision tower."""
    pair = make_pair("shared")
    text = Gemma4ForCausalLM.from_pretrained(pair.target)
    vision = Gemma4VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
    )
    config = Gemma4Config(text_config=text.config, vision_config=vision, audio_config=None)
    fused = Gemma4ForConditionalGeneration(config)
    fused.model.language_model.load_state_dict(text.model.state_dict())
    fused.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((pair.target / "tokenizer.json").read_bytes())
    manifest, steps = steps_of(Pair(tmp_path, pair.drafter), "shared")
    reference = TransformersEngine(manifest, Checkpoint.open(tmp_path), Checkpoint.open(pair.drafter))
    assert isinstance(reference.target, Gemma4ForConditionalGeneration)
    assert disagreeing(reference, EagerEngine(manifest, steps)) == set()


def test_a_fused_unified_checkpoint_agrees_with_transformers_fused_model(make_pair, tmp_path):
    """12B's kind: other modalities are embedded without towers, under names that transformers changes on loading."""
    pair = make_pair("12b")
    text = Gemma4UnifiedForCausalLM.from_pretrained(pair.target)
    vision = Gemma4UnifiedVisionConfig(patch_size=2, mm_embed_dim=64, mm_posemb_size=4, output_proj_dims=64)
    config = Gemma4UnifiedConfig(text_config=text.config, vision_config=vision, audio_config=Gemma4UnifiedAudioConfig())
    fused = Gemma4UnifiedForConditionalGeneration(config)
    fused.model.language_model.load_state_dict(text.model.state_dict())
    fused.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((pair.target / "tokenizer.json").read_bytes())
    assert any(".vision_embedder." in name for name in Checkpoint.open(tmp_path).tensors)
    manifest, steps = steps_of(Pair(tmp_path, pair.drafter), "12b")
    reference = TransformersEngine(manifest, Checkpoint.open(tmp_path), Checkpoint.open(pair.drafter))
    assert isinstance(reference.target, Gemma4UnifiedForConditionalGeneration)
    assert disagreeing(reference, EagerEngine(manifest, steps)) == set()


TARGET_GRAPHS = {"decode", "verify", "verify_2"}


@pytest.mark.parametrize("shape", ["shared", "dense", *sizes.names()])
def test_every_graph_agrees_with_transformers(reference, make_pair, shape):
    assert failing_graphs(reference, make_pair, shape) == set()


def test_trap_unscaled_embedding(reference, make_pair, monkeypatch):
    original = target._Embed.__init__
    monkeypatch.setattr(target._Embed, "__init__", lambda self, table, rows, scale: original(self, table, rows, 1.0))
    assert failing_graphs(reference, make_pair, "shared") == {"embedder", "per_layer_embedder"}


def test_trap_hidden_state_before_the_final_norm(reference, make_pair, monkeypatch):
    def forward(self, embeddings, input_pos, mask, per_layer_embeddings=None, **kv_cache):
        seen = {}
        hook = self.trunk.norm.register_forward_pre_hook(lambda _, inputs: seen.update(hidden=inputs[0]))
        outputs = original(self, embeddings, input_pos, mask, per_layer_embeddings, **kv_cache)
        hook.remove()
        return outputs | ({"activations": seen["hidden"]} if "activations" in outputs else {})

    original = target._TargetStep.forward
    monkeypatch.setattr(target._TargetStep, "forward", forward)
    assert failing_graphs(reference, make_pair, "shared") == TARGET_GRAPHS


def test_trap_position_of_the_last_cached_token_in_the_drafter(reference, make_pair, monkeypatch):
    class Unshifted(mtp._DraftStep):
        def __init__(self, drafter, layout, head, offset, operators):
            super().__init__(drafter, layout, head, 0, operators)

    monkeypatch.setattr(mtp, "_DraftStep", Unshifted)
    assert failing_graphs(reference, make_pair, "shared") == {"mtp_drafter"}


@pytest.mark.parametrize("shape", ["shared", "dense"])
def test_trap_full_instead_of_partial_rope(reference, make_pair, monkeypatch, shape):
    original = decoder.rotary
    monkeypatch.setattr(decoder, "rotary", lambda size, theta, fraction, at: original(size, theta, 1.0, at))
    assert TARGET_GRAPHS | {"mtp_drafter"} <= failing_graphs(reference, make_pair, shape)


def test_trap_rope_exponent_over_the_rotated_part_only(reference, make_pair, monkeypatch):
    def over_rotated(size, theta, fraction, at):
        return original(size, theta ** (1 / fraction), fraction, at)

    original = decoder.rotary
    monkeypatch.setattr(decoder, "rotary", over_rotated)
    assert failing_graphs(reference, make_pair, "shared") >= TARGET_GRAPHS


def test_trap_v_not_taken_from_k(reference, make_pair, monkeypatch):
    """Where V is K, it is K before its norm and rotation; here it is K after them."""

    def write(self, layer, key, value):
        is_full = key.shape[-1] == 64
        original(self, layer, key, key if is_full else value)

    from pocketdraft.export.step import StepKV

    original = StepKV.write
    monkeypatch.setattr(StepKV, "write", write)
    assert TARGET_GRAPHS | {"mtp_drafter"} <= failing_graphs(reference, make_pair, "dense")


def test_trap_softcap_on_the_drafter(reference, make_pair, monkeypatch):
    def forward(self, *inputs, **named):
        outputs = original(self, *inputs, **named)
        return outputs | {"logits": torch.tanh(outputs["logits"] / 30.0) * 30.0}

    original = mtp._DraftStep.forward
    monkeypatch.setattr(mtp._DraftStep, "forward", forward)
    assert failing_graphs(reference, make_pair, "dense") == {"mtp_drafter"}


def test_trap_no_softcap_on_the_target(reference, make_pair, monkeypatch):
    original = target._TargetStep.__init__

    def init(self, *inputs):
        original(self, *inputs)
        self.softcap = None

    monkeypatch.setattr(target._TargetStep, "__init__", init)
    assert failing_graphs(reference, make_pair, "shared") == TARGET_GRAPHS


def test_trap_sliding_window_read_forward(reference, make_pair, monkeypatch):
    def forward_masks(mask, positions, window, held):
        masks = original(mask, positions, window, held)
        ahead = held[None] < positions[:, None] + window
        masks["sliding"] = torch.where(visible(mask, held) & ahead[None, None], 0.0, MASKED)
        return masks

    original = decoder.additive_masks
    monkeypatch.setattr(decoder, "additive_masks", forward_masks)
    assert TARGET_GRAPHS | {"mtp_drafter"} <= failing_graphs(reference, make_pair, "shared")


@pytest.mark.parametrize("off", [-1, 1])
def test_trap_sliding_window_one_off(reference, make_pair, monkeypatch, off):
    original = decoder.additive_masks
    monkeypatch.setattr(
        decoder, "additive_masks", lambda mask, at, window, held: original(mask, at, window + off, held)
    )
    assert TARGET_GRAPHS | {"mtp_drafter"} <= failing_graphs(reference, make_pair, "shared")


def test_trap_bool_mask_added_instead_of_applied(reference, make_pair, monkeypatch):
    def added(mask, positions, window, held):
        return {"full": mask.float(), "sliding": visible(mask, held).float()}

    monkeypatch.setattr(decoder, "additive_masks", added)
    assert TARGET_GRAPHS | {"mtp_drafter"} <= failing_graphs(reference, make_pair, "shared")


def test_trap_centroid_head_skipped(reference, make_pair, monkeypatch):
    class Dense(mtp._DraftStep):
        def __init__(self, drafter, layout, head, offset, operators):
            super().__init__(drafter, layout, "dense", offset, operators)

    monkeypatch.setattr(mtp, "_DraftStep", Dense)
    assert failing_graphs(reference, make_pair, "shared") == {"mtp_drafter"}


@pytest.mark.parametrize("shift", [-1, 1])
def test_trap_drafter_reads_kv_one_past_or_one_short(reference, make_pair, monkeypatch, shift):
    def forward(self, activations, input_pos, mask, **kv_cache):
        seen = int(mask.sum()) + shift
        wrong = (torch.arange(mask.shape[-1]) < seen)[None, None, None]
        return original(self, activations, input_pos, wrong, **kv_cache)

    original = mtp._DraftStep.forward
    monkeypatch.setattr(mtp._DraftStep, "forward", forward)
    assert failing_graphs(reference, make_pair, "shared") == {"mtp_drafter"}


# That weights sum to 1 is for `test_moe.py`: the norm after the experts hides a factor of all of a token's.
@pytest.mark.parametrize("forgotten", ["per_expert_scale", "scale", "temperature"])
def test_trap_router_forgets(reference, make_pair, monkeypatch, forgotten):
    def forward(self, x):
        scaled = self.norm(x) * (1.0 if forgotten == "scale" else self.scale)
        scores = self.proj(scaled * (1.0 if forgotten == "temperature" else self.temperature))
        weights, chosen = torch.topk(torch.softmax(scores, -1), self.top)
        weights = weights / weights.sum(-1, keepdim=True)
        if forgotten != "per_expert_scale":
            weights = weights * self.per_expert_scale[chosen]
        return weights, chosen.to(torch.int32)

    monkeypatch.setattr(gemma4_moe.Router, "forward", forward)
    assert failing_graphs(reference, make_pair, "26b-a4b") >= TARGET_GRAPHS


def test_trap_gates_and_ups_of_an_expert_exchanged(reference, make_pair, monkeypatch):
    def rows(table, first, count, columns):
        gates = columns == 64 and bool((first % (2 * count) == 0).all())
        ups = columns == 64 and not gates
        return original(table, first + count * gates - count * ups, count, columns)

    original = gemma4_moe._rows
    monkeypatch.setattr(gemma4_moe, "_rows", rows)
    assert failing_graphs(reference, make_pair, "26b-a4b") >= TARGET_GRAPHS


@pytest.mark.parametrize("wrong", ["experts", "router"])
def test_trap_experts_or_router_fed_what_the_dense_branch_is(reference, make_pair, monkeypatch, wrong):
    def feed_forward(self, x):
        if not self.has_experts:  # the drafter
            return original(self, x)
        normed = self.pre_feedforward_layernorm(x)
        given = normed if wrong == "experts" else self.pre_feedforward_layernorm_2(x)
        mixed = self.experts(given[0], *self.router((normed if wrong == "router" else x)[0]))[None]
        return self.post_feedforward_layernorm_1(self.mlp(normed)) + self.post_feedforward_layernorm_2(mixed)

    original = gemma4.DecoderLayer._feed_forward
    monkeypatch.setattr(gemma4.DecoderLayer, "_feed_forward", feed_forward)
    assert failing_graphs(reference, make_pair, "26b-a4b") >= TARGET_GRAPHS
