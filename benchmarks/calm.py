"""What confident early exit saves on the embedded target, at a risk that is certified (CALM, arXiv 2207.07061).

    python benchmarks/calm.py [--work build/tiny] [--windows 24] [--tokens 48] [--cuts 3]
        [--deltas 0.1,0.2,0.3] [--constant] [--losses OUT]

Every text is decoded greedily with the full target and by each measure with a row of thresholds; its textual risk is
the divergence of the two outputs. The thresholds are then calibrated on half of the texts, 100 times over: how often
the other half's mean risk stays within delta, at what threshold, and at what cost. Texts are `prompts.jsonl`'s and,
with --work (`tiny/train.py`'s folder, of which `prepare`'s files are enough), windows of the held-out corpus. How these
go on there is their reference: on them excess risk is measured too, how much farther from it the early output is than
the full one.

Costs are a token's mean: `layers` that ran, and `weights` read over those that a full pass reads (layers and head).
The gap asks the MLP and the head of every exit that is tried, the classifier a row, the cosine (of the states before
and after an exit's last layer) nothing. CALM makes a skipped layer's K/V from the state that left. Here they are exact:
that state is the first skipped layer's own input, and of the layers after it none owns K/V. Where more owners are
skipped the text deviates further, so this refuses such exits.

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
from pocketdraft.runtime.calm import (
    NEVER,
    RISKS,
    TAU,
    Consistency,
    ExitRule,
    Measure,
    calibrate,
    cosine,
    divergence,
    excess_risk,
    gap,
    probability,
)
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.text import Tokenizer

PROMPT = 48  # tokens, the same for all: no padding
# Finer where tokens begin to leave: thresholds between are then not jumped over.
THRESHOLDS = (0.99, 0.97, 0.95, 0.925, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.3)
SPLITS, BATCH = 100, 32
Floats, Ints = npt.NDArray[np.float64], npt.NDArray[np.int64]


@dataclass(frozen=True)
class Decoded:
    """By rule and text: `tokens` int64 [R, N, T]; `layers`, and `weights` as a share of a full pass's, mean [R, N]."""

    tokens: Ints
    layers: Floats
    weights: Floats


class Decoder:
    def __init__(self, target: Gemma4ForCausalLM, exits: Exits, cuts: Sequence[int], measure: Measure) -> None:
        self.target, self.exits, self.cuts, self.measure = target, exits, cuts, measure
        self.left_at = np.array([*cuts, target.config.num_hidden_layers])
        owners = target.config.num_hidden_layers - target.config.num_kv_shared_layers
        if min(cuts) < owners - 1:
            raise SystemExit(f"An exit after {min(cuts)} layers skips two that own K/V, of {owners}.")
        self.costs = self._costs(owners)

    @torch.no_grad()
    def __call__(self, prompts: Tensor, rules: Sequence[ExitRule], tokens: int) -> Decoded:
        """`prompts` int64 [N, P]."""
        rows, cache = prompts.repeat(len(rules), 1), DynamicCache(config=self.target.config)
        text, exits = [], []
        for t in range(tokens):
            output = self.target.model(rows, past_key_values=cache, use_cache=True, output_hidden_states=True)
            states = [state[:, -1:] for state in output.hidden_states]
            token, exit_ = self._leave(states, t, [rule for rule in rules for _ in prompts])
            text.append(token)
            exits.append(exit_)
            rows = torch.from_numpy(token[:, None])
        numbers = np.stack(exits, -1).reshape(len(rules), len(prompts), tokens)
        tries = np.array([[not rule.never] for rule in rules])
        weights = np.where(tries, self.costs[numbers].mean(-1), 1.0)
        return Decoded(np.stack(text, -1).reshape(numbers.shape), self.left_at[numbers].mean(-1), weights)

    def _leave(self, states: Sequence[Tensor], t: int, rules: Sequence[ExitRule]) -> tuple[Ints, Ints]:
        """Token and number of the exit by row. Row i goes by rule i, and only where it has not left is it asked on."""
        token, exit_ = np.zeros(len(rules), np.int64), np.full(len(rules), len(self.cuts))
        for number, cut in enumerate(self.cuts):
            left = np.flatnonzero(exit_ > number)
            logits = self._logits(cut, states, left) if self.measure == "gap" else None
            sure = gap(logits) if logits is not None else self._confidence(cut, states)[left]
            leaves = [rules[row].exits(t, confidence) for row, confidence in zip(left, sure.tolist(), strict=True)]
            goes = left[leaves]
            exit_[goes] = number
            token[goes] = (self._logits(cut, states, goes) if logits is None else logits[leaves]).argmax(-1)
        left = np.flatnonzero(exit_ == len(self.cuts))
        token[left] = self.target.lm_head(states[-1][left, 0]).argmax(-1).numpy()
        return token, exit_

    def _logits(self, cut: int, states: Sequence[Tensor], rows: Ints) -> npt.NDArray[np.float32]:
        """float32 [rows, V]."""
        return exit_logits(self.target, self.exits.after(cut), states[cut][rows, 0]).numpy()

    def _confidence(self, cut: int, states: Sequence[Tensor]) -> Floats:
        if self.measure == "cosine":
            return cosine(states[cut][:, 0].numpy(), states[cut - 1][:, 0].numpy())
        return probability(self.exits.after(cut).score(states[cut])[:, 0].numpy())

    def _costs(self, owners: int) -> Floats:
        """Weights read where a token leaves at each exit, or at none, as a share of those of a full pass."""
        layers = self.target.model.layers
        below = np.cumsum([0, *(sum(w.numel() for w in layer.parameters()) for layer in layers)])
        head, found, asked = self.target.lm_head.weight.numel(), [], 0
        for cut in self.cuts:
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
    parser.add_argument("--cuts", help="leave after these layers alone, such as 3 or 3,5")
    parser.add_argument("--windows", type=int, default=24, help="of each domain's held-out corpus")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--deltas", default="0.1,0.2,0.3")
    parser.add_argument("--constant", action="store_true", help="thresholds that do not fall through the text")
    parser.add_argument("--losses", type=Path, help="where to write the risks, in thousandths")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    patch_transformers()
    target = load(Gemma4ForCausalLM, TARGET_DIR)
    exits, places = load_drafter(Checkpoint.open(chosen.exits), make_target(target.config))
    load_weights(places, exits)
    cuts = sorted(map(int, chosen.cuts.split(","))) if chosen.cuts else exits.cuts
    prompts, references = gather(chosen.work, chosen.windows, chosen.tokens)
    stop = target.config.eos_token_id
    deltas = [float(delta) for delta in chosen.deltas.split(",")]
    tau = None if chosen.constant else TAU
    risks: dict[str, Floats] = {}
    found: dict[str, Any] = {}
    true = [until(text, stop) for text in references.numpy()]
    print("| measure | risk | delta | threshold | layers | weights read | held-out risk | held in |\n|" + " --- |" * 8)
    for measure in get_args(Measure):
        rules = [ExitRule(measure, threshold, chosen.tokens, tau) for threshold in (NEVER, *THRESHOLDS)]
        decoder = Decoder(target, exits, cuts, measure)
        parts = [decoder(batch, rules, chosen.tokens) for batch in prompts.split(BATCH)]
        tokens, layers, weights = (
            np.concatenate([getattr(part, name) for part in parts], 1) for name in ("tokens", "layers", "weights")
        )
        full = [until(text, stop) for text in tokens[0]]
        texts = [[until(text, stop) for text in row] for row in tokens]
        risks[measure] = np.array([[divergence(*both) for both in zip(row, full, strict=True)] for row in texts])
        curves = {"risk": risks[measure], "layers": layers, "weights": weights}
        measured: dict[Consistency, Floats] = {"textual": risks[measure]}
        if true:  # of the last texts
            first = len(full) - len(true)
            whole = list(zip(full[first:], true, strict=True))
            measured["risk"] = np.array(
                [[excess_risk(text, *both) for text, both in zip(row[first:], whole, strict=True)] for row in texts]
            )
            curves["excess"] = measured["risk"]
            found["full target's distance from the references"] = float(np.mean([divergence(*both) for both in whole]))
        for consistency, values in measured.items():
            own = slice(len(full) - values.shape[1], None)
            for delta in deltas:
                made = resample(
                    rules, values, layers[:, own], weights[:, own], prompts[own].tolist(), delta, consistency
                )
                found[f"{measure}, {consistency}, {delta:g}"] = made
                print(f"| {measure} | {RISKS[consistency]} | {delta:g} | {row_of(made)} |", flush=True)
        found[measure] = {name: np.round(values[1:].mean(1), 4).tolist() for name, values in curves.items()}
    if chosen.losses:
        write_losses(chosen.losses, risks, chosen)
    print(json.dumps({"texts": len(prompts), "thresholds": THRESHOLDS, **found}))


def gather(work: Path | None, windows: int, tokens: int) -> tuple[Tensor, Tensor]:
    """int64 [N, PROMPT], and how the last of them go on: [M, tokens]."""
    tokenizer = Tokenizer(TARGET_DIR / "tokenizer.json", None)
    texts = [torch.tensor(tokenizer.encode(prompt.text)[:PROMPT]) for prompt in read_prompts(PROMPTS_FILE)]
    rows = torch.stack([text for text in texts if len(text) == PROMPT])
    if work is None:
        return rows, rows[:0]
    held_out = Batches(work, "held_out", 2)
    drawn = torch.cat([held_out.draw(windows, PROMPT + tokens, domain) for domain in DOMAINS])
    return torch.cat([rows, drawn[:, :PROMPT]]), drawn[:, PROMPT:]


def until(text: Ints, stop: int) -> list[int]:
    tokens: list[int] = text.tolist()
    return tokens[: tokens.index(stop) + 1] if stop in tokens else tokens


def resample(
    rules: Sequence[ExitRule],
    risks: Floats,
    layers: Floats,
    weights: Floats,
    texts: list[list[int]],
    delta: float,
    consistency: Consistency,
) -> dict[str, Any]:
    """Calibrates on one half of the texts, SPLITS times, and looks at the other. All arrays [R, N], row 0 is NEVER."""
    random, rows = np.random.default_rng(0), []
    for _ in range(SPLITS):
        order = random.permutation(len(texts))
        ours, others = order[: len(texts) // 2], order[len(texts) // 2 :]
        one = calibrate(rules[1:], risks[1:, ours], [texts[index] for index in ours], delta, consistency=consistency)
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
