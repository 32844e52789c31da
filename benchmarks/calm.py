"""What confident early exit saves on the embedded target, at a risk that is certified (CALM, arXiv 2207.07061).

    python benchmarks/calm.py [--work build/tiny] [--windows 32] [--tokens 64] [--deltas 0.1,0.2,0.3] [--losses OUT]

Every text is decoded greedily with the full target and by each measure with a row of thresholds; its risk is the
divergence of the two outputs. The thresholds are then calibrated on half of the texts, 100 times over: how often the
other half's mean risk stays within delta, at what threshold, and at what cost. Texts are `prompts.jsonl`'s and, with
--work (`tiny/train.py`'s folder), windows of the held-out corpus.

Costs are a token's mean: `layers` that ran, and `weights` read over those that a full pass reads (layers and head).
The gap asks the head at every exit that is tried, the cosine the exit's MLP, the classifier one row. K/V are exact
here: a skipped layer's are made from the state that left, which is the first skipped layer's own input, and all later
layers of this target share theirs. A target that skips more than one owner would deviate further.

Torch, a batch of texts a step, all layers run and the later ones ignored. The table is Markdown; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache, Gemma4ForCausalLM

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.drafting import load_drafter
from pocketdraft.export.families import make_target
from pocketdraft.export.hf_compat import patch_transformers
from pocketdraft.export.models.exits import Exits
from pocketdraft.export.stored import load as load_weights
from pocketdraft.export.tiny import EXITS_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.export.tiny.corpus import DOMAINS
from pocketdraft.export.tiny.train import load
from pocketdraft.export.tiny.train_exits import exit_logits
from pocketdraft.export.tiny.training import Batches
from pocketdraft.runtime.calm import NEVER, TAU, ExitRule, Measure, calibrate, cosine, divergence, gap, probability
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.text import Tokenizer

PROMPT = 48  # tokens, the same for all: no padding
# Finer where tokens begin to leave: thresholds between are then not jumped over.
THRESHOLDS = (
    0.995,
    0.99,
    0.98,
    0.97,
    0.96,
    0.95,
    0.925,
    0.9,
    0.875,
    0.85,
    0.8,
    0.75,
    0.7,
    0.6,
    0.5,
    0.4,
    0.3,
    0.2,
    0.1,
    0.0,
)
SPLITS, BATCH = 100, 32
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Decoded:
    """By rule and text: `tokens` int64 [R, N, T]; `layers`, and `weights` as a share of a full pass's, mean [R, N]."""

    tokens: npt.NDArray[np.int64]
    layers: Floats
    weights: Floats


class Decoder:
    def __init__(self, target: Gemma4ForCausalLM, exits: Exits, measure: Measure) -> None:
        self.target, self.exits, self.measure = target, exits, measure
        self.left_at = np.array([*exits.cuts, target.config.num_hidden_layers])
        owners = target.config.num_hidden_layers - target.config.num_kv_shared_layers
        if min(exits.cuts) < owners - 1:
            raise SystemExit(f"An exit after {min(exits.cuts)} layers skips two that own K/V, of {owners}.")
        self.costs = self._costs(owners)

    @torch.no_grad()
    def __call__(self, prompts: Tensor, rules: Sequence[ExitRule], tokens: int) -> Decoded:
        """`prompts` int64 [N, P]."""
        rows, shape = prompts.repeat(len(rules), 1), (len(rules), len(prompts))
        cache = DynamicCache(config=self.target.config)
        text, taken = [], []
        for t in range(tokens):
            output = self.target.model(rows, past_key_values=cache, use_cache=True, output_hidden_states=True)
            states = [state[:, -1:] for state in output.hidden_states]
            choice = self.target.lm_head(states[-1]).argmax(-1).numpy().reshape(shape)
            exit_ = np.full(shape, len(self.exits.cuts))
            # The first exit that is sure counts: from the last one down, each overrules those after it.
            for number, cut in reversed(list(enumerate(self.exits.cuts))):
                logits = exit_logits(self.target, self.exits.after(cut), states[cut])[:, 0]
                sure = self._confidence(cut, states, logits).reshape(shape).tolist()
                leaves = np.array([[rule.exits(t, c) for c in row] for rule, row in zip(rules, sure, strict=True)])
                choice = np.where(leaves, logits.argmax(-1).numpy().reshape(shape), choice)
                exit_ = np.where(leaves, number, exit_)
            text.append(choice)
            taken.append(exit_)
            rows = torch.from_numpy(choice.reshape(-1, 1))
        numbers = np.stack(taken, -1)
        tries = np.array([[not rule.never] for rule in rules])
        weights = np.where(tries, self.costs[numbers].mean(-1), 1.0)
        return Decoded(np.stack(text, -1), self.left_at[numbers].mean(-1), weights)

    def _confidence(self, cut: int, states: Sequence[Tensor], logits: Tensor) -> Floats:
        if self.measure == "gap":
            return gap(logits.numpy())
        if self.measure == "cosine":
            return cosine(states[cut][:, 0].numpy(), states[cut - 1][:, 0].numpy())
        return probability(self.exits.after(cut).score(states[cut])[:, 0].numpy())

    def _costs(self, owners: int) -> Floats:
        """Weights read where a token leaves at each exit, or at none, as a share of those of a full pass."""
        layers = self.target.model.layers
        below = np.cumsum([0, *(sum(w.numel() for w in layer.parameters()) for layer in layers)])
        head, found, asked = self.target.lm_head.weight.numel(), [], 0
        for cut in self.exits.cuts:
            own = self.exits.after(cut)
            mlp = sum(w.numel() for w in own.mlp.parameters())
            taken = mlp + head  # that of the exit taken; the gap needs it of every exit tried
            asked += {"gap": taken, "cosine": 0, "classifier": own.classifier.weight.numel()}[self.measure]
            skipped = layers[cut].self_attn if cut < owners else None  # its K/V are made all the same
            kv = sum(w.numel() for name, w in skipped.named_parameters() if name[:2] in ("k_", "v_")) if skipped else 0
            found.append(below[cut] + kv + asked + (0 if self.measure == "gap" else taken))
        return np.array([*found, below[-1] + head + asked]) / (below[-1] + head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--exits", type=Path, default=EXITS_DIR)
    parser.add_argument("--windows", type=int, default=32, help="of each domain's held-out corpus")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--deltas", default="0.1,0.2,0.3")
    parser.add_argument("--constant", action="store_true", help="thresholds that do not fall through the text")
    parser.add_argument("--losses", type=Path, help="where to write the risks, in thousandths")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    patch_transformers()
    target = load(Gemma4ForCausalLM, TARGET_DIR)
    exits, places = load_drafter(Checkpoint.open(chosen.exits), make_target(target.config))
    load_weights(places, exits)
    prompts = gather(chosen.work, chosen.windows)
    stop = target.config.eos_token_id
    deltas = [float(delta) for delta in chosen.deltas.split(",")]
    tau = None if chosen.constant else TAU
    risks: dict[str, Floats] = {}
    found: dict[str, Any] = {}
    print("| measure | delta | threshold | layers | weights read | held-out risk | held in |\n|" + " --- |" * 7)
    for measure in get_args(Measure):
        rules = [ExitRule(measure, threshold, chosen.tokens, tau) for threshold in (NEVER, *THRESHOLDS)]
        decoder = Decoder(target, exits, measure)
        parts = [decoder(batch, rules, chosen.tokens) for batch in prompts.split(BATCH)]
        tokens, layers, weights = (
            np.concatenate([getattr(part, name) for part in parts], 1) for name in ("tokens", "layers", "weights")
        )
        full = [until(text, stop) for text in tokens[0]]
        risks[measure] = np.array(
            [[divergence(until(t, stop), f) for t, f in zip(row, full, strict=True)] for row in tokens]
        )
        for delta in deltas:
            found[f"{measure}, {delta:g}"] = resample(rules, risks[measure], layers, weights, prompts.tolist(), delta)
            print(f"| {measure} | {delta:g} | {row_of(found[f'{measure}, {delta:g}'])} |", flush=True)
        curves = {"risk": risks[measure], "layers": layers, "weights": weights}
        found[measure] = {name: np.round(values[1:].mean(1), 4).tolist() for name, values in curves.items()}
    if chosen.losses:
        write_losses(chosen.losses, risks, chosen)
    print(json.dumps({"texts": len(prompts), "thresholds": THRESHOLDS, **found}))


def gather(work: Path | None, windows: int) -> Tensor:
    """int64 [N, PROMPT]."""
    tokenizer = Tokenizer(TARGET_DIR / "tokenizer.json", None)
    texts = [torch.tensor(tokenizer.encode(prompt.text)[:PROMPT]) for prompt in read_prompts(PROMPTS_FILE)]
    rows = torch.stack([text for text in texts if len(text) == PROMPT])
    if work is None:
        return rows
    held_out = Batches(work, "held_out", 2)
    return torch.cat([rows, *(held_out.draw(windows, PROMPT, domain) for domain in DOMAINS)])


def until(text: npt.NDArray[np.int64], stop: int) -> list[int]:
    tokens: list[int] = text.tolist()
    return tokens[: tokens.index(stop) + 1] if stop in tokens else tokens


def resample(
    rules: Sequence[ExitRule], risks: Floats, layers: Floats, weights: Floats, texts: list[list[int]], delta: float
) -> dict[str, Any]:
    """Calibrates on one half of the texts, SPLITS times, and looks at the other. All arrays [R, N], row 0 is NEVER."""
    random, rows = np.random.default_rng(0), []
    for _ in range(SPLITS):
        order = random.permutation(len(texts))
        ours, others = order[: len(texts) // 2], order[len(texts) // 2 :]
        one = calibrate(rules[1:], risks[1:, ours], [texts[index] for index in ours], delta)
        at = 0 if one.rule.never else rules.index(one.rule)
        held_out = [float(values[at, others].mean()) for values in (risks, layers, weights)]
        rows.append((one.rule.threshold, one.rule.never, *held_out))
    thresholds, never, held_risks, ran, read = np.array(rows).T
    return {
        "threshold": round(float(np.median(thresholds)), 2),
        "never": int(never.sum()),
        "layers": round(float(ran.mean()), 3),
        "weights": round(float(read.mean()), 3),
        "risk": round(float(held_risks.mean()), 4),
        "held": int((held_risks <= delta).sum()),
    }


def row_of(found: dict[str, Any]) -> str:
    return (
        f"{found['threshold']:.2f} | {found['layers']:.2f} | {found['weights']:.0%} | {found['risk']:.3f} | "
        f"{found['held']} of {SPLITS}"
    )


def write_losses(out: Path, risks: dict[str, Floats], chosen: argparse.Namespace) -> None:
    about = (
        f"Divergence (1 - ROUGE-L) of early-exit and full greedy output of the embedded target, in thousandths, by "
        f"measure, threshold and text. From benchmarks/calm.py --windows {chosen.windows} --tokens {chosen.tokens}."
    )
    rows = {measure: np.rint(1000 * values[1:]).astype(int).tolist() for measure, values in risks.items()}
    out.write_text(json.dumps({"about": about, "thresholds": THRESHOLDS, **rows}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
