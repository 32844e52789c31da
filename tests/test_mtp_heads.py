"""The native MTP head against transformers' `MtpModel` over real classes, and the porting traps between them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MellumConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.cache_utils import MtpCache
from transformers.generation.candidate_generator import MTPCandidateGenerator
from transformers.modeling_layers import MtpModel

from pocketdraft.export.models.mtp_config import MtpHeadsConfig
from pocketdraft.export.models.mtp_heads import HeadGeometry, MtpHead
from pocketdraft.export.step import Plain, StepKV
from pocketdraft.export.tiny.train_mtp_heads import checkpoint_name
from pocketdraft.runtime.errors import PocketdraftError

LIMIT = 1e-4
SLOTS = 64
WINDOW = 6
SMALL = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
}
DENSE = {"mlp_layer_types": ["dense", "dense"], "mtp_mlp_layer_types": ["dense"], "num_mtp_layers": 1}
KINDS = ("sliding", "full", "hidden_first", "no_qk_norm")


def config_of(kind: str) -> PretrainedConfig:
    """Mellum is the class with MTP layers, softmax attention and a dense MLP. Llama has none, but can be given some."""
    if kind == "no_qk_norm":
        config = LlamaConfig(**SMALL)
        config.num_mtp_layers = 1
        return config
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
    config = MellumConfig(**SMALL, **DENSE, **layers)
    config.mtp_layer_types = ["sliding_attention" if kind == "sliding" else "full_attention"]
    config.mtp_hidden_states_first = kind == "hidden_first"
    return config


def geometry_of(kind: str, theta: float) -> HeadGeometry:
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    fields = {name: SMALL[name] for name in names} | {"rope_parameters": {"rope_theta": theta}}
    fields |= {"sliding_window": WINDOW if kind == "sliding" else None, "use_qk_norm": kind != "no_qk_norm"}
    return HeadGeometry.from_config(MtpHeadsConfig(**fields, mtp_hidden_states_first=kind == "hidden_first"))


@torch.no_grad()
def randomize(*models: torch.nn.Module) -> None:
    for model in models:
        for weight in model.parameters():
            weight.normal_(0, weight.shape[-1] ** -0.5) if weight.ndim == 2 else weight.normal_(1, 0.2)


def own_weights(mtp: MtpModel, layer: int = 0) -> dict[str, Tensor]:
    """Of one head, under the names that checkpoints have."""
    prefix = f"layers.{layer}."
    state = mtp.state_dict().items()
    return {checkpoint_name(n.removeprefix(prefix)): w for n, w in state if n.startswith(prefix)}


@dataclass(frozen=True)
class Reference:
    target: PreTrainedModel
    mtp: MtpModel
    head: MtpHead
    tokens: Tensor  # int64 [1, 24]

    @functools.cached_property
    @torch.no_grad()
    def hidden(self) -> Tensor:
        return self.target(self.tokens, output_hidden_states=True).hidden_states[-1]

    @functools.cached_property
    @torch.no_grad()
    def before_the_norm(self) -> Tensor:
        seen: list[Tensor] = []
        hook = self.target.model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        self.target(self.tokens)
        hook.remove()
        return seen[0]


@functools.cache
def reference(kind: str) -> Reference:
    torch.manual_seed(0)
    config = config_of(kind)
    target = AutoModelForCausalLM.from_config(config).eval()
    mtp = MtpModel(target, 1).eval()
    randomize(target, mtp)
    rope = config.rope_parameters
    head = MtpHead(
        geometry_of(kind, rope.get("sliding_attention" if kind == "sliding" else "full_attention", rope)["rope_theta"])
    )
    head.load_state_dict({name.removeprefix("mtp."): weight for name, weight in own_weights(mtp).items()})
    return Reference(target, mtp, head.eval(), torch.randint(3, SMALL["vocab_size"], (1, 24)))


class Drafting:
    """Our head over a cache of its own, as a runtime calls it."""

    def __init__(self, target: PreTrainedModel, *heads: MtpHead) -> None:
        self.target, self.heads = target, heads
        g = heads[0].geometry
        self.tensors = {
            f"kv_cache_{name}_{head.index}": torch.zeros(1, g.kv_heads, *shape)
            for head in heads
            for name, shape in (("k", (SLOTS, g.head_dim)), ("v", (g.head_dim, SLOTS)))
        }
        self.turned = 0  # added to positions: what rotates, never where a row lies
        self.seen_ahead = 0

    @torch.no_grad()
    def __call__(self, tokens: Tensor, hidden: Tensor, start: int, head: int = 0) -> Tensor:
        """The rows from `start` on: `tokens` [1, T] are those after the positions of `hidden` [1, T, D]."""
        positions = torch.arange(start, start + tokens.shape[1], dtype=torch.int32)
        mask = (torch.arange(SLOTS)[None] <= positions[:, None] + self.seen_ahead)[None, None]
        kv = StepKV(self.tensors, positions[:1], positions[-1:], SLOTS, Plain())
        embeddings = self.target.get_input_embeddings()(tokens)
        state = self.heads[head](embeddings, hidden, positions + self.turned, mask, kv)
        self.tensors = kv.tensors
        return state

    def logits(self, state: Tensor) -> Tensor:
        return self.target.lm_head(state)


DRAFTS, ACCEPTED, PROMPT = 4, (2, 0, 3, 1), 9


@torch.no_grad()
def reference_rounds(ref: Reference) -> list[Tensor]:
    """The states of each round's drafts, by `MtpModel.forward_layer`; its cache is cropped to verified rows."""
    cache, states, done, length = MtpCache(config=ref.mtp.config), [], 0, PROMPT
    cache.activate_past_recording()
    for accepted in ACCEPTED:
        tokens, hidden = ref.tokens[:, done + 1 : length], ref.hidden[:, done : length - 1]
        at = torch.arange(done + 1, length)[None]
        for _ in range(DRAFTS):
            state = ref.mtp.forward_layer(0, hidden, at, cache, input_ids=tokens)[:, -1:]
            tokens, hidden, at = ref.mtp.shared_head(state).argmax(-1), state, at[:, -1:] + 1
            states.append(state)
        cache.crop(1 - DRAFTS)
        done, length = length - 1, length + accepted + 1
    return states


def our_rounds(
    ref: Reference,
    run: Drafting,
    verified: Tensor | None = None,
    first: Callable[[int, int], int] = lambda done, _: done,
) -> list[Tensor]:
    """The same. `first` is the first row of a round's catching up, from the rows verified before and now."""
    verified = ref.hidden if verified is None else verified
    states, done, length = [], 0, PROMPT
    for accepted in ACCEPTED:
        row = first(done, length)
        tokens, hidden = ref.tokens[:, row + 1 : length], verified[:, row : length - 1]
        for _ in range(DRAFTS):
            state = run(tokens, hidden, row)[:, -1:]
            row += tokens.shape[1]
            tokens, hidden = run.logits(state).argmax(-1), state
            states.append(state)
        done, length = length - 1, length + accepted + 1
    return states


def furthest(wanted: list[Tensor], found: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(wanted, found, strict=True))


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

    weights = {
        name.removeprefix("mtp."): w for name, w in load_file(tmp_path / "model.safetensors").items() if "mtp." in name
    }
    head = MtpHead(ref.head.geometry)
    head.load_state_dict(weights)
    found, tokens = our_generation(target, head, ref.tokens[:, :PROMPT], written.shape[1])
    assert tokens.tolist() == written.tolist()
    assert found == proposed
    accepted = sum(int(written[0, at]) == token for at, token in proposed if at < written.shape[1])
    assert 0 < accepted < len(proposed)


@torch.no_grad()
def our_generation(
    target: PreTrainedModel, head: MtpHead, tokens: Tensor, length: int
) -> tuple[list[tuple[int, int]], Tensor]:
    """One draft a round: (length before it, draft), and all tokens."""
    run, found, done = Drafting(target, head), [], 0
    output = target(tokens, output_hidden_states=True)
    tokens = torch.cat([tokens, output.logits[:, -1:].argmax(-1)], 1)
    while tokens.shape[1] < length:
        count = tokens.shape[1] - 1
        states = run(tokens[:, done + 1 :], output.hidden_states[-1][:, done:count], done)
        draft = run.logits(states[:, -1:]).argmax(-1)
        found.append((tokens.shape[1], int(draft)))
        output, done = target(torch.cat([tokens, draft], 1), output_hidden_states=True), count
        choice = output.logits[:, -2:].argmax(-1)
        tokens = torch.cat([tokens, choice if choice[0, 0] == draft[0, 0] else choice[:, :1]], 1)[:, :length]
    return found, tokens


def test_two_heads_draft_one_after_the_other():
    """As DeepSeek's and GLM's do: head 1 is fed head 0's state and draft, and has K/V of its own."""
    torch.manual_seed(1)
    config = Qwen3Config(**SMALL)
    config.num_mtp_layers, config.mtp_layer_types = 2, ["full_attention"] * 2
    target = AutoModelForCausalLM.from_config(config).eval()
    mtp = MtpModel(target, 2).eval()
    randomize(target, mtp)
    heads = [MtpHead(geometry_of("full", 10000.0), index) for index in range(2)]
    for index, head in enumerate(heads):
        head.load_state_dict({n.removeprefix("mtp."): w for n, w in own_weights(mtp, index).items()})
    tokens = torch.randint(3, 24, (1, 12))
    with torch.no_grad():
        hidden = target(tokens, output_hidden_states=True).hidden_states[-1][:, :-1]
        cache = MtpCache(config=config.get_mtp_config())
        drafts, wanted, _ = mtp(tokens[:, 1:], hidden, None, torch.arange(1, 12)[None], cache)
    run = Drafting(target, *heads)
    states = run(tokens[:, 1:], hidden, 0)
    first = run.logits(states[:, -1:])
    states = run(torch.cat([tokens[:, 2:], first.argmax(-1)], 1), states, 0, head=1)
    found = torch.cat([first, run.logits(states[:, -1:])], 1)
    assert float((found - wanted).abs().max()) < LIMIT
    assert found.argmax(-1).tolist() == drafts.tolist()


def trapped(kind: str, change: Callable[[Drafting], None] = lambda run: None, **given) -> float:
    ref = reference(kind)
    head = MtpHead(ref.head.geometry)
    head.load_state_dict(ref.head.state_dict())
    run = Drafting(ref.target, head)
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
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}},
    ],
)
def test_a_head_that_the_graph_does_not_cover_is_refused(fields):
    with pytest.raises(PocketdraftError, match="The MTP head has"):
        HeadGeometry.from_config(MtpHeadsConfig(**fields))
