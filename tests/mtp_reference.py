"""Real classes of transformers with an MTP head, small and random, and our head drafting beside them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MellumConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3_5TextConfig,
)
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from pocketdraft.export import own_head
from pocketdraft.export.heads import checkpoint_name
from pocketdraft.export.models.mtp_config import MtpHeadsConfig
from pocketdraft.export.models.mtp_heads import HeadGeometry, MtpHead
from pocketdraft.export.step import Plain, StepKV

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
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}
DENSE = {"mlp_layer_types": ["dense", "dense"], "mtp_mlp_layer_types": ["dense"], "num_mtp_layers": 1}
KINDS = ("sliding", "full", "hidden_first", "no_qk_norm", "gated")


def config_of(kind: str) -> PretrainedConfig:
    """Mellum is the class with MTP layers, softmax attention and a dense MLP. Llama has none, but can be given some;
    Qwen3.5 ("gated") has one in its checkpoints."""
    if kind == "no_qk_norm":
        config = LlamaConfig(**SMALL)
        config.num_mtp_layers = 1
        return config
    if kind == "gated":
        config = Qwen3_5TextConfig(**SMALL | {"num_hidden_layers": 4}, **DELTA)
        config.num_mtp_layers, config.mtp_layer_types = 1, ["full_attention"]
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
    if kind == "gated":
        return HeadGeometry.from_config(own_head.head_config(config_of(kind)))
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


def head_of(geometry: HeadGeometry, checkpoint: dict[str, Tensor], index: int = 0) -> MtpHead:
    """With the head's weights out of a checkpoint's. Fails if one is missing or unknown."""
    head = MtpHead(geometry, index)
    head.load_state_dict({n.removeprefix("mtp."): w for n, w in checkpoint.items() if n.startswith("mtp.")})
    return head.eval()


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
    theta = rope.get(f"{'sliding' if kind == 'sliding' else 'full'}_attention", rope)["rope_theta"]
    head = head_of(geometry_of(kind, theta), own_weights(mtp))
    return Reference(target, mtp, head, torch.randint(3, SMALL["vocab_size"], (1, 24)))


class Drafting:
    """Our head over a cache of its own, as a runtime calls it."""

    def __init__(self, target: PreTrainedModel, *heads: MtpHead) -> None:
        self.target, self.heads = target, heads
        g = heads[0].geometry
        self.tensors = {
            f"kv_cache_{name}_{head.index}": torch.zeros(1, g.size.kv_heads, *shape)
            for head in heads
            for name, shape in (("k", (SLOTS, g.size.head_dim)), ("v", (g.size.head_dim, SLOTS)))
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

    @torch.no_grad()
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
