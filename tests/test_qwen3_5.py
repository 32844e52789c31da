"""Qwen3.5 against transformers' own modules: recurrent layers that take tokens back, gated attention, its MTP head."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qwen3_5 import BACK, CONTEXT, PROMPT, WIDTHS, checkpoint_with_head, config_of, generated, reference_of
from safetensors.torch import load_file, save_file

from pocketdraft.export import own_head
from pocketdraft.export.calibrate import calibrate
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.models import delta_net
from pocketdraft.export.models.attention import rotary
from pocketdraft.export.models.decoder import Target
from pocketdraft.export.models.delta_net import Order, Recent, inverse
from pocketdraft.export.pipeline import check_rules, load_models, open_models
from pocketdraft.export.plan import Plan, Recipes
from pocketdraft.export.rungs import eager_pair
from pocketdraft.export.step import Plain, StepKV
from pocketdraft.export.tiny import TARGET_DIR
from pocketdraft.quantize.recipe import load
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.report import print_manifest
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target as Loop

LIMIT = 1e-3  # of these logits transformers' own float32 has an error of 1e-4, by its float64
HEADS = [(2, 4), (4, 4), (1, 3)]  # of keys, of values


@pytest.mark.parametrize(("keys", "values"), HEADS)
def test_every_graph_agrees_with_transformers(keys, values):
    reference = reference_of(keys, values)
    assert reference.error([("prefill_7", 0), ("decode", 7), ("verify_3", 8), ("verify", 9)]) <= LIMIT


starts = st.lists(st.tuples(st.sampled_from(sorted(WIDTHS)), st.integers(0, BACK)), min_size=1, max_size=7)


@settings(deadline=None, max_examples=40)
@given(calls=starts)
def test_a_call_may_go_back_by_up_to_so_many_tokens_whatever_came_there_before(calls):
    """What was refused, or was padding, is other tokens: of them nothing may be left."""
    reference, start, planned = reference_of(), 0, []
    furthest = 0
    for graph, back in calls:
        start = max(0, furthest - BACK, start - back)
        if start + WIDTHS[graph] > CONTEXT:
            break
        planned.append((graph, start))
        start += WIDTHS[graph]
        furthest = max(furthest, start)
    assert reference.error(planned, refused=True) <= LIMIT


def test_a_sequence_that_begins_in_the_memory_of_another_begins_anew():
    reference = reference_of()
    assert reference.error([("prefill_7", 0), ("verify", 7), ("prefill_7", 0), ("decode", 7)]) <= LIMIT


def test_a_long_text_of_one_token_again_and_again():
    """Keys that are all alike: the powers of their products have entries of 10^20 and more."""
    reference = reference_of()
    reference.tokens[:] = [3] * len(reference.tokens)
    assert reference.error([("prefill_40", 0), ("prefill_40", 40), ("decode", 80)], text=[3] * 90) <= LIMIT


@pytest.mark.parametrize("rows", [1, 2, 5, 16, 21])
def test_the_inverse_is_one_for_any_number_of_rows(rows):
    torch.manual_seed(rows)
    lower = torch.randn(1, 2, rows, rows).tril(-1)
    kv = StepKV({}, torch.zeros(1), torch.zeros(1), 8, Plain())
    for most in (rows, 40):
        found = inverse(lower, Order.of(rows, max(2, most)), kv)
        assert torch.allclose(found @ (torch.eye(rows) + lower), torch.eye(rows).expand_as(found), atol=1e-3)


def spoilt(spoil: Callable[[Target], None], calls: list[tuple[str, int]] | None = None) -> float:
    reference = reference_of(spoil=spoil)
    return reference.error(calls or [("prefill_7", 0), ("decode", 7), ("verify_3", 8), ("verify", 9)], refused=True)


def test_the_traps_start_from_parity():
    assert spoilt(lambda _: None) <= LIMIT


def each(change: Callable[[torch.nn.Module], None], kind: str) -> Callable[[Target], None]:
    def spoil(target: Target) -> None:
        for layer in target.trunk.layers:
            if hasattr(layer, kind):
                change(getattr(layer, kind))

    return spoil


def test_trap_norms_weights_taken_for_what_they_multiply_by():
    def spoil(target: Target) -> None:
        for module in target.modules():
            if getattr(module, "zero_centred", False):
                module.zero_centred = False

    assert spoilt(spoil) > 10 * LIMIT


def test_trap_attention_s_gate_forgotten():
    def forget(attention: torch.nn.Module) -> None:
        weight = attention.q_proj.weight
        queries = weight.reshape(-1, 2, attention.head_dim, weight.shape[1])[:, 0].flatten(0, 1)
        attention.gated, attention.q_proj.weight = False, torch.nn.Parameter(queries)

    assert spoilt(each(forget, "self_attn")) > 10 * LIMIT


def test_trap_query_and_gate_are_halves_of_all_heads_not_of_each():
    def swap(attention: torch.nn.Module) -> None:
        size, weight = attention.head_dim, attention.q_proj.weight
        attention.q_proj.weight = torch.nn.Parameter(
            weight.reshape(2, -1, size, weight.shape[1]).transpose(0, 1).reshape(weight.shape)
        )

    assert spoilt(each(swap, "self_attn")) > 10 * LIMIT


def test_trap_all_of_a_head_turned(monkeypatch):
    monkeypatch.setattr("pocketdraft.export.models.qwen3_5.rotary", lambda size, *rest: rotary(4 * size, *rest))
    assert spoilt(lambda _: None) > 10 * LIMIT


def test_trap_value_heads_dealt_to_key_heads_in_turn(monkeypatch):
    """Head 0 of the values goes with head 0 of the keys, head 1 too: not with head 1."""
    original = delta_net.GatedDeltaNet._unit_heads

    def dealt(self, x):
        return tuple(part[:, [0, 2, 1, 3]] for part in original(self, x))

    monkeypatch.setattr(delta_net.GatedDeltaNet, "_unit_heads", dealt)
    assert spoilt(lambda _: None) > 10 * LIMIT


def test_trap_order_of_step_and_decay():
    def swap(net: torch.nn.Module) -> None:
        net.in_proj_a, net.in_proj_b = net.in_proj_b, net.in_proj_a

    assert spoilt(each(swap, "linear_attn")) > 10 * LIMIT


def changed(monkeypatch: pytest.MonkeyPatch, **fields: Callable[[Recent], torch.Tensor]) -> None:
    """What all recurrent layers of a call have in common, but for these."""
    original = Recent.of

    def of(*given):
        found = original(*given)
        return dataclasses.replace(found, **{name: change(found) for name, change in fields.items()})

    monkeypatch.setattr(Recent, "of", of)


def test_trap_the_state_settles_on_refused_drafts(monkeypatch):
    changed(monkeypatch, settles=lambda recent: torch.ones_like(recent.settles))
    assert spoilt(lambda _: None) > 10 * LIMIT


def test_trap_rows_that_the_state_holds_count_twice(monkeypatch):
    changed(monkeypatch, live=lambda recent: torch.ones_like(recent.live))
    assert spoilt(lambda _: None, [("prefill_7", 0), ("verify", 7), ("decode", 8)]) > 10 * LIMIT


def test_trap_the_convolution_looks_at_rows_that_were_refused(monkeypatch):
    """One row off: what the rows before a call were is not what the call before gave last."""
    changed(monkeypatch, before=lambda recent: recent.before.roll(1, 3))
    assert spoilt(lambda _: None) > 10 * LIMIT


def test_trap_a_sequence_that_begins_finds_the_state_of_another(monkeypatch):
    changed(monkeypatch, goes_on=lambda recent: torch.ones_like(recent.goes_on))
    calls = [("prefill_7", 0), ("verify", 7), ("verify", 12), ("prefill_7", 0), ("decode", 7)]
    assert spoilt(lambda _: None, calls) > 10 * LIMIT


def test_trap_rows_from_before_the_beginning(monkeypatch):
    changed(monkeypatch, told=lambda recent: torch.ones_like(recent.told))
    assert spoilt(lambda _: None, [("prefill_7", 0), ("prefill_7", 0), ("decode", 7)]) > 10 * LIMIT


@pytest.fixture
def checkpoint(qwen_pair) -> Path:
    return qwen_pair[0]


@pytest.fixture
def head(qwen_pair) -> Path:
    return qwen_pair[1]


@pytest.mark.parametrize("length", [1, 2, 9, 30, 63, 64, 70])
def test_a_prompt_of_any_length_gives_transformers_text(checkpoint, length):
    """64 tokens are a call; the rest has padding, or none."""
    prompt = np.random.default_rng(length).integers(3, 2000, length).tolist()
    engine = eager_pair(Checkpoint.open(checkpoint), context=128)
    assert written(engine, "prompt_lookup", prompt) == generated(checkpoint, prompt, 24)


def written(engine, drafter: str, prompt: list[int], budget: int = 24, drafts: int = 4) -> list[int]:
    rounds = open_session(engine, drafter, drafts).generate(prompt, budget)
    return [token for emitted in rounds for token in emitted.tokens]


@pytest.mark.parametrize("drafts", [1, 3, 4])
def test_its_own_head_drafts_and_the_text_is_transformers(checkpoint, head, drafts):
    engine = eager_pair(Checkpoint.open(checkpoint), Checkpoint.open(head), context=128)
    assert written(engine, "mtp_heads", PROMPT, 40, drafts) == generated(checkpoint, PROMPT, 40)


def test_another_one_that_drafts_for_it_goes_back_as_well(checkpoint, tmp_path):
    other = checkpoint_with_head(tmp_path, seed=1)
    engine = eager_pair(Checkpoint.open(checkpoint), Checkpoint.open(other), context=128)
    assert written(engine, "draft_model", PROMPT, 40) == generated(checkpoint, PROMPT, 40)
    whole = eager_pair(Checkpoint.open(checkpoint), Checkpoint.open(checkpoint), context=128)
    session = open_session(whole, "draft_model", 4)
    list(session.generate(PROMPT, 40))
    assert session.stats.accepted_per_round == 4.0


def test_a_conversation_that_goes_back_gives_transformers_text(checkpoint):
    """By less and by more than a state can take back."""
    session = open_session(eager_pair(Checkpoint.open(checkpoint), context=128), "prompt_lookup", 4)
    first = [token for emitted in session.generate(PROMPT, 20) for token in emitted.tokens]
    for kept in (len(PROMPT) + 19, len(PROMPT) + 3, 2):
        tokens = [*[*PROMPT, *first][:kept], 7, 7]
        rest = session.rewind(tokens)
        found = [token for emitted in session.generate(rest, 12) for token in emitted.tokens]
        assert found == generated(checkpoint, tokens, 12)


def test_what_sees_and_drafts_in_a_checkpoint_is_left_out(checkpoint, tmp_path):
    """As Qwen releases them: the text half below `model.language_model`, beside a vision tower and the MTP head."""
    weights = load_file(checkpoint / "model.safetensors")
    moved = {name.replace("model.", "model.language_model.", 1): weight for name, weight in weights.items()}
    moved |= {"model.visual.patch_embed.proj.weight": torch.zeros(4)}
    save_file(moved, tmp_path / "model.safetensors", {"format": "pt"})
    text = json.loads((checkpoint / "config.json").read_text())
    config = {"model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    (tmp_path / "tokenizer.json").write_bytes((checkpoint / "tokenizer.json").read_bytes())
    engine = eager_pair(Checkpoint.open(tmp_path), context=128)
    assert written(engine, "none", PROMPT) == generated(checkpoint, PROMPT, 24)
    own_head.extract(tmp_path, tmp_path / "head")
    assert Checkpoint.open(tmp_path / "head").config.hidden_size == text["hidden_size"]


def test_a_bundle_of_it_takes_no_trees(checkpoint):
    assert not Loop(eager_pair(Checkpoint.open(checkpoint), context=128)).takes_trees


def test_the_manifest_says_how_much_is_taken_back_and_what_is_kept(checkpoint):
    manifest = eager_pair(Checkpoint.open(checkpoint), context=96).manifest
    assert manifest.takes_back == 5
    # K/V of one layer; of three, states of 4 heads and rows of 5 + 3 tokens; and one position.
    kv, states, rows = 2 * 2 * 32 * 96, 3 * 4 * 16 * 24, 3 * 8 * (2 * 32 + 96 + 8)
    assert manifest.kv_bytes == 4 * (kv + states + rows + 1)
    assert manifest.kv_bytes_of(10) == 4 * (2 * 2 * 32 * 10 + states + rows + 1)


@pytest.mark.parametrize(("choice", "value"), [("attention_bias", True), ("attn_output_gate", False)])
def test_a_choice_that_the_graphs_do_not_have_is_refused(tmp_path, choice, value):
    config_of(**{choice: value}).save_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    said = f"has {choice} {value}, the graphs of a qwen3_5_text have {not value}"
    with pytest.raises(PocketdraftError, match=said):
        load_models(Checkpoint.open(tmp_path))


def test_it_cannot_be_left_early(checkpoint):
    with pytest.raises(PocketdraftError, match=r"--early-exit is 2, .* has recurrent layers"):
        eager_pair(Checkpoint.open(checkpoint), context=128, early_exit=(2,))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"device": "gpu"}, "whose state no GPU kernel keeps; give --device cpu"),
        ({"out": Path("one.litertlm")}, "which LiteRT-LM cannot run; give a folder"),
    ],
)
def test_what_knows_no_recurrent_layers_is_refused_before_any_work(checkpoint, asked, said):
    recipe = load("f32")
    plan = Plan(**{"target": checkpoint, "drafters": (), "out": Path("out"), "recipes": Recipes(*[recipe] * 3)} | asked)
    with pytest.raises(PocketdraftError, match=said):
        check_rules(plan, open_models(Checkpoint.open(checkpoint)))


def test_a_checkpoint_without_its_head_has_none_to_give(checkpoint, tmp_path):
    weights = load_file(checkpoint / "model.safetensors")
    bare = {name: weight for name, weight in weights.items() if not name.startswith("mtp.")}
    save_file(bare, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    with pytest.raises(PocketdraftError, match=r"has no weights mtp\.\*: whoever saved it left its MTP head out"):
        own_head.extract(tmp_path, tmp_path / "head")
    assert not (tmp_path / "head").exists()


def test_another_target_has_no_such_head(tmp_path):
    with pytest.raises(PocketdraftError, match="of which no head can be taken; give a Qwen"):
        own_head.extract(TARGET_DIR, tmp_path / "head")


def test_inspect_says_which_layers_have_states_and_how_far_they_go_back(checkpoint, tmp_path, capsys):
    print_manifest(eager_pair(Checkpoint.open(checkpoint), context=96).manifest, tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert "K/V float32 of layers 3 (full, 2x32) states of layers 0, 1, 2, which take back 5 tokens" in said


def test_its_weights_are_calibrated_with_recurrent_layers_between_them(checkpoint, tmp_path):
    """By whole texts at once, before which no layer remembers anything: what a layer gives must be transformers'."""
    recipe, texts = load("w4"), [np.random.default_rng(seed).integers(3, 2000, 260).tolist() for seed in range(4)]
    counts = calibrate(Checkpoint.open(checkpoint), Recipes(recipe, recipe, recipe), texts, tmp_path / "calibrated")
    # Of MLPs and recurrent layers all, of attention the query's: w4 has the others, and the head's table, in int8.
    assert counts["weights"] == 4 * 3 + 3 * 5 + 1
    engine = eager_pair(Checkpoint.open(tmp_path / "calibrated"), context=128)
    assert written(engine, "prompt_lookup", PROMPT) == written(engine, "none", PROMPT)
