"""Small random Qwen3.5 models of transformers' own class, ours beside them, and checkpoints with an MTP head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import FEW_WIDTHS
from kept import kept
from mtp_reference import own_weights, randomize
from safetensors.torch import load_file, save_file
from test_llama import Bundle
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3_5TextConfig
from transformers.modeling_layers import MtpModel

from pocketdraft.export import own_head
from pocketdraft.export.backends.eager import EagerEngine
from pocketdraft.export.kv_layout import KVLayout
from pocketdraft.export.models.decoder import Target
from pocketdraft.export.models.qwen3_5 import make_target
from pocketdraft.export.pipeline import build
from pocketdraft.export.plan import Plan, Recipes
from pocketdraft.export.step import Plain
from pocketdraft.export.steps.target import embedder_steps, target_steps
from pocketdraft.export.tiny import TARGET_DIR
from pocketdraft.quantize.recipe import load
from pocketdraft.runtime.manifest import Backend
from pocketdraft.runtime.proposal import Proposal
from pocketdraft.runtime.tree import inputs

CONTEXT, VOCABULARY, BACK = 96, 96, 5
WIDTHS = {"prefill_7": 7, "prefill_40": 40, "decode": 1, "verify": 5, "verify_3": 3}  # of graphs
PROMPT = [5, 6, 7, 8, 5, 6, 7]


def config_of(keys: int = 2, values: int = 4, vocabulary: int = VOCABULARY, **more: Any) -> Qwen3_5TextConfig:
    return Qwen3_5TextConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        linear_num_key_heads=keys,
        linear_num_value_heads=values,
        linear_key_head_dim=16,
        linear_value_head_dim=24,
        tie_word_embeddings=True,
        eos_token_id=None,
        **more,
    )


def random_model(config: Qwen3_5TextConfig, seed: int) -> PreTrainedModel:
    """Weights under which a state forgets some, not all: norms' are around zero."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    randomize(model)
    _quiet(model)
    return model


@torch.no_grad()
def _quiet(model: torch.nn.Module) -> None:
    for name, weight in model.named_parameters():
        if "norm" in name and "linear_attn.norm" not in name:
            weight.sub_(1.0)
        if name.endswith("A_log"):
            weight.uniform_(-3.0, 0.5)
        if name.endswith("dt_bias"):
            weight.uniform_(-2.0, 1.0)


@dataclass
class Reference:
    """Theirs, of all tokens at once, and ours, call by call."""

    theirs: PreTrainedModel
    engine: EagerEngine
    tokens: list[int] = field(default_factory=lambda: np.random.default_rng(0).integers(0, 96, CONTEXT).tolist())

    def error(self, calls: list[tuple[str, int]], refused: bool = False, text: list[int] | None = None) -> float:
        """The largest, of logits and hidden states: graphs and where they start, one after the other.

        Where a call goes back before the end of the one before, what was there becomes other tokens if `refused`.
        """
        generator = np.random.default_rng(1)
        tokens, worst, cache, end = list(text or self.tokens), 0.0, self.engine.new_cache(), 0
        for graph, start in calls:
            if refused and start < end:
                tokens[start:] = generator.integers(0, VOCABULARY, len(tokens) - start).tolist()
            end = start + WIDTHS[graph]
            found = self._call(graph, start, tokens[start:end], cache)
            with torch.no_grad():
                wanted = self.theirs(torch.tensor([tokens[:end]]), output_hidden_states=True)
            whole = {"logits": wanted.logits, "activations": wanted.hidden_states[-1]}
            errors = [np.abs(found[name][0] - whole[name][0, start:].numpy()).max() for name in found]
            worst = max([worst, *map(float, errors)])
        return worst

    def _call(self, graph: str, start: int, fed: list[int], cache: Any) -> dict[str, np.ndarray]:
        rows = [self.engine.run("embedder", {"token_ids": np.array([[token]], np.int32)}) for token in fed]
        feed = {"embeddings": np.concatenate([row["embeddings"] for row in rows], 1)}
        return self.engine.run(graph, feed | inputs(Proposal.chain(fed[1:]), start, len(fed), CONTEXT), cache)


def reference_of(keys: int = 2, values: int = 4, spoil: Callable[[Target], None] = lambda _: None) -> Reference:
    theirs = random_model(config_of(keys, values), 0)
    ours = make_target(theirs.config)
    weights = {name.removeprefix("model."): weight for name, weight in theirs.state_dict().items()}
    own = ("embed_tokens.", "lm_head.")
    ours.load_state_dict({n if n.startswith(own) else f"trunk.{n}": weight for n, weight in weights.items()})
    spoil(ours)
    layout = KVLayout.of(ours.geometry, CONTEXT, 40, back=BACK)
    steps = [*target_steps(ours.eval(), layout, (7, 40), (5, 3), Plain()), *embedder_steps(ours)]
    return Reference(theirs, EagerEngine(Bundle(steps), steps))


def checkpoint_with_head(folder: Path, seed: int = 0) -> Path:
    """As Qwen's checkpoints have it: the head's weights are named `mtp.*`. With the embedded pair's tokenizer."""
    config = config_of(vocabulary=2048)
    config.num_mtp_layers, config.mtp_layer_types = 1, ["full_attention"]
    target = random_model(config, seed)
    mtp = MtpModel(target, 1).eval()
    for layer in mtp.layers:
        randomize(layer)
        _quiet(layer)
    target.save_pretrained(folder)
    path = folder / "model.safetensors"
    head = {name: weight.contiguous() for name, weight in own_weights(mtp).items()}
    save_file(load_file(path) | head, path, {"format": "pt"})
    (folder / "tokenizer.json").write_bytes((TARGET_DIR / "tokenizer.json").read_bytes())
    return folder


def pair_in(folder: Path) -> tuple[Path, Path]:
    """A target, and its head taken out of it."""
    target = checkpoint_with_head(folder / "target")
    own_head.extract(target, folder / "head")
    return target, folder / "head"


def bundle_of(pair: tuple[Path, Path], backend: Backend, recipe: str) -> Path:
    own = load(recipe)

    def write(out: Path) -> None:
        build([Plan(pair[0], pair[1:], out, Recipes(own, own, own), backend, **FEW_WIDTHS)])

    return kept(f"qwen3_5-{recipe}-{backend}", write)


def generated(folder: Path, prompt: list[int], budget: int) -> list[int]:
    """By transformers, which drafts for no model with recurrent layers: greedily."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=budget)
    return text[0, len(prompt) :].tolist()
