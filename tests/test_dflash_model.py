"""The DFlash drafter for export against transformers' own, round by round; and each porting trap, put in and seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Gemma4ForCausalLM, MuseGlimmerAssistantConfig, MuseGlimmerAssistantModel
from transformers.cache_utils import DFlashCache

from pocketdraft.export.models.dflash import DFlash, DFlashGeometry
from pocketdraft.export.step import Plain, StepKV
from pocketdraft.export.tiny import DFLASH_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.export.tiny.configs import MASK_TOKEN, dflash_config
from pocketdraft.export.tiny.train_dflash import denoise, tap
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.text import Tokenizer

CONTEXT, PROMPT, BLOCK, HIDDEN, TAPS = 64, 9, 6, 32, 3
ACCEPTED = (2, 0, 5, 1)  # drafts of each round: all of a block, none, some
LIMIT = 1e-4
FLOOR = 1.1  # drafts accepted a round: 1.29 was measured


def small_config(**changes) -> MuseGlimmerAssistantConfig:
    values = {
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "layer_types": ["full_attention"] * 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 7,
        "block_size": BLOCK,
        "mask_token_id": 3,
        "target_layer_ids": [0, 2, 5],
    }
    return MuseGlimmerAssistantConfig(**values | changes)


@torch.no_grad()
def both(config: MuseGlimmerAssistantConfig) -> tuple[MuseGlimmerAssistantModel, DFlash]:
    """transformers' drafter with random weights, and ours with the same."""
    torch.manual_seed(0)
    theirs = MuseGlimmerAssistantModel._from_config(config, attn_implementation="eager").eval()
    for weight in theirs.parameters():
        if weight.ndim == 1:
            weight.normal_(1.0, 0.3)
        else:
            weight.normal_(0.0, 1.5 * weight.shape[1] ** -0.5)
    ours = DFlash(DFlashGeometry.from_config(config)).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@dataclass(frozen=True)
class Round:
    """What the target committed since the last round, [1, W, n * D] from position `start`, and the block's input."""

    taps: Tensor
    start: int
    embeddings: Tensor


def rounds() -> list[Round]:
    random = torch.Generator().manual_seed(1)
    found, start = [], 0
    for committed in (PROMPT, *(count + 1 for count in ACCEPTED)):
        taps = torch.randn(1, committed, TAPS * HIDDEN, generator=random)
        found.append(Round(taps, start, torch.randn(1, BLOCK, HIDDEN, generator=random)))
        start += committed
    return found


@torch.no_grad()
def reference(drafter: MuseGlimmerAssistantModel) -> list[Tensor]:
    """As transformers' `DFlashTokenCandidateGenerator` calls it: [1, B, D] of each round."""
    cache, found = DFlashCache(config=drafter.config), []
    cache.activate_past_recording()
    for given in rounds():
        committed = given.taps.shape[1]
        cache.set_previous_accepted_tokens(committed)
        if found:
            cache.crop(-BLOCK)
        output = drafter(
            noise_embeds=given.embeddings,
            context_hidden_states=given.taps,
            position_ids=given.start + torch.arange(committed + BLOCK)[None],
            attention_mask=torch.ones(1, given.start + committed + BLOCK, dtype=torch.int64),
            past_key_values=cache,
        )
        found.append(output.last_hidden_state)
    return found


@dataclass(frozen=True)
class Loop:
    """How our loop calls the drafter; a test changes one thing to be wrong."""

    padding: int = 0  # rows of a context call beyond the committed ones: its graph has a fixed width
    slots: int = CONTEXT  # of each layer; a ring if fewer than the context
    causal: bool = False
    block_shift: int = 0
    keep_scratch: bool = False
    context: Callable[[Tensor], Tensor] = lambda taps: taps


@torch.no_grad()
def drafted(drafter: DFlash, loop: Loop) -> list[Tensor]:
    g = drafter.geometry
    kept = {}
    for layer in range(len(g.kinds)):
        kept[f"kv_cache_k_{layer}"] = torch.full((1, g.size.kv_heads, loop.slots, g.size.head_dim), 9.0)
        kept[f"kv_cache_v_{layer}"] = torch.full((1, g.size.kv_heads, g.size.head_dim, loop.slots), 9.0)

    def kv(start: int, count: int) -> StepKV:
        first, last = (torch.tensor([at], dtype=torch.int32) for at in (start, start + count - 1))
        return StepKV(kept, first, last, CONTEXT, Plain())

    found: list[Tensor] = []
    for given in rounds():
        scratch = BLOCK * len(found) if loop.keep_scratch else 0
        taps = torch.cat([loop.context(given.taps), torch.full((1, loop.padding, TAPS * HIDDEN), 7.0)], 1)
        written = kv(given.start + scratch, taps.shape[1])
        drafter.context(taps, given.start + torch.arange(taps.shape[1], dtype=torch.int32), written)
        kept = written.tensors
        start = given.start + given.taps.shape[1]
        mask = torch.zeros(1, 1, BLOCK, CONTEXT, dtype=torch.bool)
        mask[..., : start + scratch + BLOCK] = True
        if loop.causal:
            mask[..., start : start + BLOCK] = torch.ones(BLOCK, BLOCK).tril().bool()
        block = kv(start + scratch, BLOCK)
        positions = start + loop.block_shift + torch.arange(BLOCK, dtype=torch.int32)
        found.append(drafter.draft(given.embeddings, positions, mask, block))
        kept = block.tensors
    return found


def errors(theirs: MuseGlimmerAssistantModel, ours: DFlash, loop: Loop | None = None) -> list[float]:
    """The largest difference of each round."""
    pairs = zip(reference(theirs), drafted(ours, loop or Loop()), strict=True)
    return [(a - b).abs().max().item() for a, b in pairs]


SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_each_round_agrees_with_transformers(kv_heads):
    assert max(errors(*both(small_config(num_key_value_heads=kv_heads)))) < LIMIT


def test_sliding_layers_see_the_window_before_and_after():
    assert max(errors(*both(small_config(layer_types=SLIDING)))) < LIMIT


def test_sliding_layers_in_a_ring_agree():
    """The ring holds the window, the block and what was committed; the window reaches before the text's start."""
    config = small_config(layer_types=["sliding_attention"] * 3, sliding_window=PROMPT + 3)
    assert max(errors(*both(config), Loop(slots=25))) < LIMIT


def test_rows_beyond_the_committed_ones_leave_no_trace():
    assert max(errors(*both(small_config()), Loop(padding=5))) < LIMIT


class NoNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class QueryOfContext(nn.Module):
    """Queries made from the last committed rows, as a layer that joins both before its projections would."""

    def __init__(self, attention: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.project, self.rows = attention.q_proj, torch.zeros(1, 0, HIDDEN)
        encoder.register_forward_hook(self.see)

    def see(self, module: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
        self.rows = output

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([self.rows, x], 1)[:, : x.shape[1]])


def without_context_norm(drafter: DFlash) -> Loop:
    drafter.encoder.output_norm_enc = NoNorm()
    return Loop()


def queries_of_context(drafter: DFlash) -> Loop:
    for layer in drafter.layers:
        layer.self_attn.q_proj = QueryOfContext(layer.self_attn, drafter.encoder)
    return Loop()


def context_through_the_layer_norm(drafter: DFlash) -> Loop:
    for layer in drafter.layers:
        remember = layer.self_attn.remember
        layer.self_attn.remember = lambda x, *rest, f=remember, n=layer.input_layernorm: f(n(x), *rest)
    return Loop()


def reordered(taps: Tensor) -> Tensor:
    return taps.unflatten(-1, (TAPS, HIDDEN)).flip(2).flatten(2)


TRAPS = {
    "context without its norm": without_context_norm,
    "context through the layer's norm": context_through_the_layer_norm,
    "queries of the context": queries_of_context,
    "causal inside the block": lambda drafter: Loop(causal=True),
    "block one position late": lambda drafter: Loop(block_shift=1),
    "taps in another order": lambda drafter: Loop(context=reordered),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_is_seen_in_every_round(trap):
    theirs, ours = both(small_config())
    loop = TRAPS[trap](ours)
    assert min(errors(theirs, ours, loop)) > 100 * LIMIT


def test_scratch_left_visible_is_seen_from_the_second_round_on():
    first, *later = errors(*both(small_config()), Loop(keep_scratch=True))
    assert first < LIMIT
    assert min(later) > 100 * LIMIT


def test_a_window_one_too_small_is_seen():
    theirs, ours = both(small_config(layer_types=SLIDING))
    ours.geometry = replace(ours.geometry, window=ours.geometry.window - 1)
    assert max(errors(theirs, ours)) > 100 * LIMIT


def test_parameters_are_those_of_the_checkpoint():
    theirs, ours = both(small_config())
    assert {name: weight.shape for name, weight in ours.named_parameters()} == {
        name: weight.shape for name, weight in theirs.named_parameters()
    }


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "linear"),
        ({"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "layers of chunked_attention"),
    ],
)
def test_what_the_graphs_do_not_cover_is_refused(changes, named):
    with pytest.raises(PocketdraftError, match=named) as caught:
        DFlashGeometry.from_config(small_config(**changes))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def target() -> Gemma4ForCausalLM:
    return Gemma4ForCausalLM.from_pretrained(TARGET_DIR, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def drafter() -> MuseGlimmerAssistantModel:
    return MuseGlimmerAssistantModel.from_pretrained(
        DFLASH_DIR, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def test_the_embedded_weights_load_by_name(drafter):
    ours = DFlash(DFlashGeometry.from_config(drafter.config))
    ours.load_state_dict({name: weight.float() for name, weight in load_file(DFLASH_DIR / "model.safetensors").items()})
    assert all(torch.equal(weight, drafter.get_parameter(name)) for name, weight in ours.named_parameters())


def test_the_embedded_drafter_is_what_the_training_makes(drafter, target):
    made = DFlashGeometry.from_config(dflash_config(target.config))
    assert DFlashGeometry.from_config(drafter.config) == made
    assert made.size.hidden == target.config.hidden_size


def test_no_text_is_written_with_the_mask():
    tokenizer = Tokenizer(TARGET_DIR / "tokenizer.json", bos=None)
    assert tokenizer.spelling(MASK_TOKEN) == "<unk>"
    bytes_of_all_kinds = bytes(range(256)).decode("latin-1") + "\ufffd\U0001f600"
    assert MASK_TOKEN not in tokenizer.encode(bytes_of_all_kinds)


@torch.no_grad()
def test_blocks_trained_at_once_are_those_drafted_one_by_one(drafter, target):
    ours = DFlash(DFlashGeometry.from_config(drafter.config)).eval()
    ours.load_state_dict(drafter.state_dict())
    g, anchors = ours.geometry, torch.tensor([5, 11, 14, 30])
    tokens = torch.randint(6, target.vocab_size, (1, 48), generator=torch.Generator().manual_seed(2))
    teacher = tap(target, tokens, drafter.config.target_layer_ids)
    wanted = denoise(drafter, teacher, anchors)[0]
    for index, anchor in enumerate(anchors.tolist()):
        heads, size = g.size.kv_heads, g.size.head_dim
        k, v = torch.zeros(1, heads, CONTEXT, size), torch.zeros(1, heads, size, CONTEXT)
        kept = {f"kv_cache_k_{i}": k for i in range(3)} | {f"kv_cache_v_{i}": v for i in range(3)}
        positions = torch.arange(anchor + g.block, dtype=torch.int32)
        before, block = positions[:anchor], positions[anchor:]
        kv = StepKV(kept, before[:1], before[-1:], CONTEXT, Plain())
        ours.context(teacher.taps[:, :anchor], before, kv)
        kv = StepKV(kv.tensors, block[:1], block[-1:], CONTEXT, Plain())
        noise = target.model.embed_tokens(torch.tensor([[tokens[0, anchor].item()] + [g.mask_token] * (g.block - 1)]))
        mask = (torch.arange(CONTEXT) < anchor + g.block).expand(1, 1, g.block, CONTEXT)
        found = ours.draft(noise, block, mask, kv)
        assert torch.allclose(found[0, 1:], wanted[index], atol=1e-3)


def test_transformers_generates_the_same_text_with_it_in_fewer_calls(drafter, target):
    """transformers' own loop: greedy text is the target's, and at least FLOOR drafts of a round are accepted."""
    tokenizer = Tokenizer(TARGET_DIR / "tokenizer.json", bos=target.config.bos_token_id)
    proposed = []
    counting = drafter.register_forward_hook(lambda *given: proposed.append(1))
    emitted = 0
    for prompt in [prompt for prompt in read_prompts(PROMPTS_FILE) if prompt.id.endswith("-00")]:
        tokens = torch.tensor([tokenizer.encode(prompt.text)])
        plain = target.generate(tokens, max_new_tokens=48, do_sample=False)
        drafted = target.generate(
            tokens, max_new_tokens=48, do_sample=False, assistant_model=drafter, speculation_type="dflash"
        )
        assert drafted.tolist() == plain.tolist()
        emitted += plain.shape[1] - tokens.shape[1] - 1  # the prompt's own token is not a round's
    counting.remove()
    assert emitted / len(proposed) - 1 > FLOOR
