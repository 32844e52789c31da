"""Several native MTP heads against transformers' `MtpModel` and its generator, and the porting traps between them."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mtp_reference import DENSE, SMALL, Drafting, geometry_of, head_of, own_weights, randomize
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, MellumConfig, Qwen3Config, Qwen3ForCausalLM
from transformers.cache_utils import MtpCache
from transformers.generation.candidate_generator import MTPCandidateGenerator
from transformers.modeling_layers import MtpModel

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.drafting import load_drafter
from pocketdraft.export.models.mtp_config import MtpHeadsConfig
from pocketdraft.export.rungs import eager_pair
from pocketdraft.export.tiny import TARGET_DIR
from pocketdraft.runtime.context import Context
from pocketdraft.runtime.draft_length import Fixed
from pocketdraft.runtime.drafters.mtp_heads import MTPHeadsDrafter
from pocketdraft.runtime.engine import Arrays, Delegating, Engine
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.proposal import Proposal
from pocketdraft.runtime.sampler import Sampler
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.session import open_session

HEADS, VOCABULARY, PROMPTS, PROMPT, LENGTH = 3, 5, 8, 9, 24
SIZES = SMALL | {"vocab_size": VOCABULARY}
LAYERS, WINDOW = SMALL["num_hidden_layers"], 6
LIMIT = 1e-4
Rounds = dict[tuple[int, int], list[int]]  # drafts by prompt and how many tokens there were


@dataclass(frozen=True)
class Made:
    """Checkpoints of a real target and its MTP layers, and what transformers' generator makes of them, greedily."""

    target: Path
    heads: Path
    texts: list[list[int]]
    rounds: Rounds

    def engine(self) -> Engine:
        return eager_pair(Checkpoint.open(self.target), Checkpoint.open(self.heads), context=48, drafts=4)


def weights_of(mtp: MtpModel) -> dict[str, Tensor]:
    """As DeepSeek-V3's checkpoints name them: layers after the target's own."""
    found = {}
    for name, weight in mtp.state_dict().items():
        if match := re.fullmatch(r"layers\.(\d+)\.(?:mtp_block\.)?(.+)", name):
            part = match[2].replace("post_norm", "shared_head.norm")
            found[f"model.layers.{int(match[1]) + LAYERS}.{part}"] = weight.contiguous()
    return found


def save_heads(folder: Path, weights: dict[str, Tensor], **more: object) -> Path:
    folder.mkdir()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    sizes = {name: SIZES[name] for name in (*names, "head_dim", "num_hidden_layers")} | {"num_mtp_layers": HEADS}
    MtpHeadsConfig(**sizes | more).save_pretrained(folder)
    save_file(weights, folder / "model.safetensors")
    return folder


def generated(target: Any, prompts: Tensor, patch: pytest.MonkeyPatch) -> tuple[list[list[int]], Rounds]:
    original, texts, rounds = MTPCandidateGenerator.get_candidates, [], Rounds()

    def noted(self, input_ids, *rest, **named):
        candidates, logits = original(self, input_ids, *rest, **named)
        if logits is not None:
            length = input_ids.shape[1]
            rounds[len(texts), length] = candidates[0, length:].tolist()
        return candidates, logits

    patch.setattr(MTPCandidateGenerator, "get_candidates", noted)
    for prompt in prompts:
        written = target.generate(prompt[None], use_mtp=True, do_sample=False, max_new_tokens=LENGTH)
        texts.append(written[0].tolist())
    return texts, rounds


def made_in(folder: Path, window: int | None = None) -> Made:
    """Random weights, under which drafts of one token in five are as often right. `window` is that of the heads."""
    torch.manual_seed(36)
    config = Qwen3Config(**SIZES)
    config.num_mtp_layers, config.mtp_layer_types = HEADS, ["full_attention"] * HEADS
    target = AutoModelForCausalLM.from_config(config).eval()
    mtp = MtpModel(target, HEADS).eval()
    randomize(target, mtp)
    target.save_pretrained(folder / "target")
    (folder / "target" / "tokenizer.json").write_bytes((TARGET_DIR / "tokenizer.json").read_bytes())
    shutil.copytree(folder / "target", folder / "whole")
    weights, own = weights_of(mtp), load_file(folder / "target" / "model.safetensors")
    save_file(own | weights, folder / "whole" / "model.safetensors", {"format": "pt"})
    if window:
        sliding = {
            "sliding_window": window,
            "use_sliding_window": True,
            "mtp_layer_types": ["sliding_attention"] * HEADS,
        }
        raw = json.loads((folder / "whole" / "config.json").read_text())
        (folder / "whole" / "config.json").write_text(json.dumps(raw | sliding))
    copied = {f"model.layers.{LAYERS}.{name}.weight": torch.zeros(1) for name in ("embed_tokens", "shared_head.head")}
    heads = save_heads(folder / "heads", weights | copied, sliding_window=window)
    with pytest.MonkeyPatch.context() as patch:
        # transformers finds the weights by what its class leaves out: Qwen3 has no released ones.
        left_out = [rf"^model\.layers\.{LAYERS + head}\." for head in range(HEADS)]
        patch.setattr(Qwen3ForCausalLM, "_keys_to_ignore_on_load_unexpected", left_out)
        whole = AutoModelForCausalLM.from_pretrained(folder / "whole").eval()
        texts, rounds = generated(whole, torch.randint(0, VOCABULARY, (PROMPTS, PROMPT)), patch)
    return Made(folder / "target", heads, texts, rounds)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return made_in(tmp_path_factory.mktemp("several"))


def our_rounds(made: Made, engine: Engine, drafts: int = 4) -> Rounds:
    """The first round drafts nothing, as transformers' does. The text is what it is, whatever is drafted."""
    rounds = Rounds()
    for number, text in enumerate(made.texts):
        session = open_session(engine, "mtp_heads", 0)
        session.begin(text[:PROMPT], LENGTH)
        session.round()
        session.draft_length, propose = Fixed(drafts), session.drafter.propose

        def noted(context: Context, count: int, propose=propose, number=number) -> Proposal:
            proposal = propose(context, count)
            rounds[number, len(context.tokens)] = list(proposal.tokens)
            return proposal

        session.drafter.propose = noted  # type: ignore[method-assign]
        while session.context.finish is None:
            session.round()
        assert session.context.tokens == text
    return rounds


def early(rounds: Rounds) -> Rounds:
    """Those with room for all drafts."""
    return {at: drafts for at, drafts in rounds.items() if at[1] + HEADS < PROMPT + LENGTH}


@pytest.mark.parametrize("asked", [HEADS, 4])
def test_generation_proposes_and_accepts_what_transformers_does(made, asked):
    """Draft by draft, whatever of the round before was accepted; asked for more than there are heads as well."""
    assert early(our_rounds(made, made.engine(), asked)) == early(made.rounds)
    starts = sorted(made.rounds)
    accepted = Counter(b[1] - a[1] - 1 for a, b in pairwise(starts) if a[0] == b[0])
    assert all(accepted[count] > 3 for count in range(HEADS + 1))
    assert len({tuple(drafts) for drafts in made.rounds.values()}) > 20


def test_generation_with_sliding_windows_does_too(made, tmp_path):
    sliding = made_in(tmp_path, WINDOW)
    assert early(our_rounds(sliding, sliding.engine())) == early(sliding.rounds)
    assert sliding.rounds != made.rounds


@pytest.mark.parametrize("kind", ["sliding", "full", "hidden_first"])
def test_the_drafts_of_heads_one_after_the_other(kind):
    """Of Mellum, the class with sliding windows: head k is fed head k - 1's states and draft."""
    torch.manual_seed(1)
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
    config = MellumConfig(**SMALL, **DENSE, **layers)
    config.num_mtp_layers, config.mtp_mlp_layer_types = HEADS, ["dense"] * HEADS  # Mellum has one, MtpModel any
    config.mtp_layer_types = ["sliding_attention" if kind == "sliding" else "full_attention"] * HEADS
    config.mtp_hidden_states_first = kind == "hidden_first"
    target = AutoModelForCausalLM.from_config(config).eval()
    mtp = MtpModel(target, HEADS).eval()
    randomize(target, mtp)
    rope = config.rope_parameters
    theta = rope.get(f"{'sliding' if kind == 'sliding' else 'full'}_attention", rope)["rope_theta"]
    heads = [head_of(geometry_of(kind, theta), own_weights(mtp, index), index) for index in range(HEADS)]
    tokens = torch.randint(3, 24, (1, 20))
    with torch.no_grad():
        hidden = target(tokens, output_hidden_states=True).hidden_states[-1][:, :-1]
        cache = MtpCache(config=config.get_mtp_config())
        drafts, wanted, _ = mtp(tokens[:, 1:], hidden, None, torch.arange(1, 20)[None], cache)
    run, states, found = Drafting(target, *heads), hidden, []
    for head in range(HEADS):
        states = run(torch.cat([tokens[:, 1:], drafts], 1)[:, head : head + 19], states, 0, head)
        found.append(run.logits(states[:, -1:]))
    assert float((torch.cat(found, 1) - wanted).abs().max()) < LIMIT
    assert torch.cat(found, 1).argmax(-1).tolist() == drafts.tolist()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, seed=3)], ids=["greedy", "sampled"])
def test_the_tokens_are_plain_decoding_s_and_stay_so_after_going_back(made, sampling):
    engine, texts = made.engine(), []
    for drafter in ("none", "mtp_heads"):
        session = open_session(engine, drafter, 3, sampler=Sampler(sampling))
        text = [t for e in session.generate(made.texts[0][:PROMPT], 24) for t in e.tokens]
        rest = session.rewind([*made.texts[0][:PROMPT], *text[:11], 2, 4])
        texts.append(text + [t for e in session.generate(rest, 20) for t in e.tokens])
    assert texts[0] == texts[1]


# --- traps: the text stays what it is, the drafts do not


class Changed(Delegating):
    """`change` gives which head's graph runs, on which inputs, in the place of a head's call."""

    def __init__(self, engine: Engine, change: Callable[[int, Arrays], tuple[int, Arrays]]) -> None:
        super().__init__(engine)
        self.change = change
        self.graphs = {graph.name: graph for graph in engine.manifest.graphs_of("mtp_heads")}

    def run(self, graph: str, inputs: Arrays, cache: Any = None) -> dict[str, Any]:
        if spec := self.graphs.get(graph):
            head, inputs = self.change(spec.head, inputs)
            graph = next(n for n, one in self.graphs.items() if (one.head, one.width) == (head, spec.width))
        return super().run(graph, inputs, cache)


def parted(made: Made, engine: Engine) -> bool:
    return early(our_rounds(made, engine)) != early(made.rounds)


def test_the_traps_start_from_parity(made):
    assert not parted(made, Changed(made.engine(), lambda head, inputs: (head, inputs)))


def test_trap_head_k_over_head_0_s_k_v(made):
    class Shared(Delegating):
        def run(self, graph: str, inputs: Arrays, cache: Any = None) -> dict[str, Any]:
            head = next(one.head for one in self.manifest.graphs if one.name == graph)
            if head == 0:
                return super().run(graph, inputs, cache)
            names = [f"mtp_heads_kv_cache_{kind}_" for kind in "kv"]
            own = {f"{name}{head}": cache[f"{name}{head}"] for name in names}
            cache.update({f"{name}{head}": cache[f"{name}0"] for name in names})
            outputs = super().run(graph, inputs, cache)
            cache.update(own)
            return outputs

    assert parted(made, Shared(made.engine()))


def test_trap_rows_turned_by_k_more_than_those_of_the_prompt(made):
    """All of a head's rows may be shifted alike, as transformers' are by k + 1."""

    def late(head: int, inputs: Arrays) -> tuple[int, Arrays]:
        more = head if len(inputs["input_pos"]) <= 5 else 0
        return head, {**inputs, "input_pos": inputs["input_pos"] + np.int32(more)}

    assert parted(made, Changed(made.engine(), late))


def test_trap_drafts_for_tokens_that_came(made, monkeypatch):
    settle = MTPHeadsDrafter._settle
    monkeypatch.setattr(MTPHeadsDrafter, "_settle", lambda self, came: settle(self, self._drafts))
    assert parted(made, made.engine())


def test_trap_a_token_too_early_for_head_k(made, monkeypatch):
    read = MTPHeadsDrafter._read

    def early(self, head, start, hidden, after):
        return read(self, head, start, hidden, [after[0], *after] if head else after)

    monkeypatch.setattr(MTPHeadsDrafter, "_read", early)
    assert parted(made, made.engine())


def test_trap_heads_in_another_order(made):
    order = {0: 0, 1: 2, 2: 1}
    assert parted(made, Changed(made.engine(), lambda head, inputs: (order[head], inputs)))


def test_trap_target_s_states_for_every_head(made, monkeypatch):
    catch_up = MTPHeadsDrafter._catch_up

    def from_the_target(self, head, context, drafts):
        first, waiting = self._waiting[0], self._waiting[head]
        if head:
            waiting.put(first.start, first.rows)
        return catch_up(self, head, context, drafts)

    monkeypatch.setattr(MTPHeadsDrafter, "_catch_up", from_the_target)
    assert parted(made, made.engine())


# --- checkpoints


def refused(tmp_path: Path, weights: dict[str, Tensor], **fields: object) -> str:
    folder = save_heads(tmp_path / "heads", weights, **fields)
    with pytest.raises(PocketdraftError) as caught:
        load_drafter(Checkpoint.open(folder), None)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_mtp_layers": 0}, "has 0 MTP layers; pocketdraft exports one"),
        ({"draft_vocab_size": 8}, "has 3 MTP layers and an lm_head of their own"),
        ({"mtp_layer_types": ["full_attention", "sliding_attention"]}, "of the kinds full_attention and sliding_att"),
        ({"chain_hidden_post_norm": True}, "has 3 MTP layers without norms of their own at the end"),
    ],
)
def test_heads_that_the_graphs_do_not_cover_are_refused(tmp_path, fields, said):
    assert said in refused(tmp_path, {"mtp.fc.weight": torch.zeros(1)}, **fields)


def test_a_projection_that_all_layers_share_is_refused(tmp_path):
    """As vLLM's Qwen3-Next would have it; transformers finds no second layer's projection."""
    assert "has one mtp.fc.weight for 3 MTP layers" in refused(tmp_path, {"mtp.fc.weight": torch.zeros(1)})


def test_a_layer_that_lacks_its_projection_is_named(made, tmp_path):
    weights = load_file(made.heads / "model.safetensors")
    del weights["model.layers.3.eh_proj.weight"]
    assert "lacks the weight heads.1.fc.weight" in refused(tmp_path, weights)


def test_more_layers_than_the_configuration_says_are_named(made, tmp_path):
    weights = load_file(made.heads / "model.safetensors")
    assert "has a weight model.layers.4." in refused(tmp_path, weights, num_mtp_layers=2)


def test_one_layer_with_a_projection_of_its_own_is_the_single_head(made, tmp_path):
    """DeepSeek-V3 has one."""
    weights = load_file(made.heads / "model.safetensors")
    folder = save_heads(tmp_path / "one", {n: w for n, w in weights.items() if ".2." in n}, num_mtp_layers=1)
    engine = eager_pair(Checkpoint.open(made.target), Checkpoint.open(folder), context=48, drafts=4)
    assert [graph.name for graph in engine.manifest.graphs_of("mtp_heads")] == [f"mtp_heads_{w}" for w in (1, 5, 48)]
    ours, theirs = our_rounds(made, engine, 1), early(made.rounds)
    shared = ours.keys() & theirs
    assert len(shared) > 50
    assert all(ours[at] == theirs[at][:1] for at in shared)


def test_heads_that_no_verify_is_wide_enough_for_are_left_out(made):
    engine = eager_pair(Checkpoint.open(made.target), Checkpoint.open(made.heads), context=48, drafts=2)
    assert engine.manifest.drafters.mtp_heads.heads == 2
    assert {graph.head for graph in engine.manifest.graphs_of("mtp_heads")} == {0, 1}
