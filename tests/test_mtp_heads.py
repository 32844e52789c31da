"""The native MTP head against transformers' `MtpModel` over real classes, and the porting traps between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from mtp_reference import (
    DRAFTS,
    KINDS,
    PROMPT,
    WINDOW,
    Drafting,
    furthest,
    head_of,
    our_generation,
    our_rounds,
    own_weights,
    reference,
    reference_rounds,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.cache_utils import MtpCache
from transformers.generation.candidate_generator import MTPCandidateGenerator

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.drafting import load_drafter
from pocketdraft.export.models.mtp_config import MtpHeadsConfig
from pocketdraft.export.models.mtp_heads import HeadGeometry
from pocketdraft.runtime.errors import PocketdraftError

LIMIT = 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widths", [(23,), (5, 1, 1, 9, 4, 3)])
def test_the_state_of_every_row_is_that_of_transformers_however_rows_are_cut_into_calls(kind, widths):
    ref = reference(kind)
    cache = MtpCache(config=ref.mtp.config)
    with torch.no_grad():
        wanted = ref.mtp.forward_layer(
            0, ref.hidden[:, :-1], torch.arange(1, 24)[None], cache, input_ids=ref.tokens[:, 1:]
        )
    run, found, start = Drafting(ref.target, ref.head), [], 0
    for width in widths:
        found.append(run(ref.tokens[:, start + 1 : start + 1 + width], ref.hidden[:, start : start + width], start))
        start += width
    assert furthest([wanted], [torch.cat(found, 1)]) < LIMIT


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_of_one_head_that_is_used_again_and_again(kind):
    """Verified rows replace those of drafts, accepted or not: transformers crops, we overwrite."""
    ref = reference(kind)
    assert furthest(reference_rounds(ref), our_rounds(ref, Drafting(ref.target, ref.head))) < LIMIT


def test_positions_may_be_shifted_all_together():
    """transformers rotates row p by p + 1, we by p."""
    ref = reference("full")
    run = Drafting(ref.target, ref.head)
    run.turned = 17
    assert furthest(reference_rounds(ref), our_rounds(ref, run)) < LIMIT


@pytest.mark.parametrize("kind", ["sliding", "full"])
def test_generation_proposes_and_accepts_what_transformers_does(kind, tmp_path, monkeypatch):
    """Greedy, token by token, with the weights as they lie in Mellum's checkpoint."""
    ref = reference(kind)
    ref.target.save_pretrained(tmp_path)
    mine = own_weights(ref.mtp)
    save_file(load_file(tmp_path / "model.safetensors") | mine, tmp_path / "model.safetensors", {"format": "pt"})
    target = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    proposed: list[tuple[int, int]] = []
    original = MTPCandidateGenerator.get_candidates

    def noted(self, input_ids, *rest, **named):
        candidates, logits = original(self, input_ids, *rest, **named)
        if logits is not None:
            proposed.append((input_ids.shape[1], int(candidates[0, -1])))
        return candidates, logits

    monkeypatch.setattr(MTPCandidateGenerator, "get_candidates", noted)
    written = target.generate(ref.tokens[:, :PROMPT], use_mtp=True, do_sample=False, max_new_tokens=40)
    monkeypatch.undo()

    head = head_of(ref.head.geometry, load_file(tmp_path / "model.safetensors"))
    found, tokens = our_generation(target, head, ref.tokens[:, :PROMPT], written.shape[1])
    assert tokens.tolist() == written.tolist()
    assert found == proposed
    accepted = sum(int(written[0, at]) == token for at, token in proposed if at < written.shape[1])
    assert 0 < accepted < len(proposed)


def trapped(kind: str, change: Callable[[Drafting], None] = lambda run: None, **given) -> float:
    ref = reference(kind)
    run = Drafting(ref.target, head_of(ref.head.geometry, own_weights(ref.mtp)))
    change(run)
    return furthest(reference_rounds(ref), our_rounds(ref, run, **given))


def test_the_traps_start_from_parity():
    assert trapped("full") < LIMIT


def test_trap_order_of_embedding_and_hidden_state():
    def swap(run: Drafting) -> None:
        g = run.heads[0].geometry
        run.heads[0].geometry = replace(g, hidden_first=not g.hidden_first)

    assert trapped("full", swap) > 10 * LIMIT
    assert trapped("hidden_first", swap) > 10 * LIMIT


def test_trap_hidden_state_before_the_final_norm():
    """The head norms what it is fed: of a state before the norm, the norm's weights are what is missing."""
    assert trapped("full", verified=reference("full").before_the_norm) > 10 * LIMIT


def test_trap_hidden_state_of_the_token_instead_of_the_one_before():
    assert trapped("full", verified=reference("full").hidden.roll(-1, 1)) > 10 * LIMIT


def test_trap_constant_position_through_a_draft():
    """Gemma's drafter keeps its position; a head's rows go on, and so does what rotates them."""

    def hold(run: Drafting) -> None:
        original, drafted = run.__class__.__call__, [0]

        class Held(Drafting):
            def __call__(self, tokens: Tensor, hidden: Tensor, start: int, head: int = 0) -> Tensor:
                drafted[0] = drafted[0] + 1 if hidden.shape[1] == 1 and drafted[0] < DRAFTS - 1 else 0
                self.turned = -drafted[0]
                return original(self, tokens, hidden, start, head)

        run.__class__ = Held

    assert trapped("full", hold) > 10 * LIMIT


@pytest.mark.parametrize("kind", ["sliding", "full"])
def test_trap_kv_of_accepted_drafts_left_in_the_cache(kind):
    """Rows of accepted drafts hold K/V of the head's own states: they look right, and are not."""
    assert trapped(kind, first=lambda done, length: length - 2 if done else 0) > 10 * LIMIT


def test_trap_kv_of_refused_drafts_seen():
    assert trapped("full", lambda run: setattr(run, "seen_ahead", 2)) > 10 * LIMIT


@pytest.mark.parametrize("off", [-1, 1])
def test_trap_sliding_window_one_off(off):
    def shift(run: Drafting) -> None:
        run.heads[0].geometry = replace(run.heads[0].geometry, window=WINDOW + off)

    assert trapped("sliding", shift) > 10 * LIMIT


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
    ],
)
def test_a_head_that_the_graph_does_not_cover_is_refused(fields):
    with pytest.raises(PocketdraftError, match="The MTP head has"):
        HeadGeometry.from_config(MtpHeadsConfig(**fields))


def test_a_missing_weight_of_a_head_is_named(tmp_path):
    MtpHeadsConfig().save_pretrained(tmp_path)
    save_file({"mtp.norm.weight": torch.zeros(128)}, tmp_path / "model.safetensors")
    with pytest.raises(PocketdraftError, match=r"lacks the weight fc\.weight"):
        load_drafter(Checkpoint.open(tmp_path), None)
