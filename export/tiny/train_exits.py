"""Trains exits for the embedded target, which stays as it is: about a quarter of an hour on one CPU core.

    python -m pocketdraft.export.tiny.train_exits --work build/tiny

--work is `train.py`'s, with the encoded texts and the target's own. Each exit learns the last layer's distribution and
its choice; then its classifier learns where their choices are one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import Gemma4ForCausalLM

from ..distil import token_loss
from ..hf_compat import patch_transformers
from ..hf_model import softcapped
from ..models.exits import Exit, Exits
from ..models.exits_config import ExitsConfig
from ..muon import Optimizer
from . import EXITS_DIR, TARGET_DIR
from .train import load
from .train_drafter import _mixed
from .training import Batches

CUTS, INTERMEDIATE = (2, 3, 4, 5), 128
TEXTS = 6  # a step
CLASSIFIER_RATE = 1e-2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--target", type=Path, default=TARGET_DIR)
    parser.add_argument("--out", type=Path, default=EXITS_DIR)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--classifier-steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    patch_transformers()
    target = load(Gemma4ForCausalLM, chosen.target)
    written = torch.load(chosen.work / "written.pt")
    exits = train_exits(target, Batches(chosen.work, "training", 31), written, chosen.steps)
    train_classifiers(target, exits, Batches(chosen.work, "training", 32), written, chosen.classifier_steps)
    publish(exits, chosen.out)


def train_exits(
    target: Gemma4ForCausalLM, training: Batches, written: Tensor, steps: int, cuts: tuple[int, ...] = CUTS
) -> Exits:
    """An exit after each of `cuts` layers. They share a pass of the target and nothing else."""
    torch.manual_seed(0)
    exits = new_exits(target, cuts)
    optimizer, random, started = Optimizer(exits), torch.Generator().manual_seed(4), time.process_time()
    for index in range(steps):
        states, wanted = teach(target, _mixed(training, written, TEXTS, random))
        total = 0.0
        for cut in exits.cuts:
            loss = token_loss(exit_logits(target, exits.after(cut), states[cut]), wanted).mean()
            loss.backward()
            total += loss.item() / len(exits.cuts)
        optimizer.step(index, index / steps)
        if index % 50 == 49:
            minutes = (time.process_time() - started) / 60
            print(f"exits {index + 1}/{steps}: loss {total:.3f}, {minutes:.1f} CPU minutes", flush=True)
    return exits.eval()


def train_classifiers(target: Gemma4ForCausalLM, exits: Exits, training: Batches, written: Tensor, steps: int) -> None:
    """Each learns, by binary cross entropy, where its exit's choice is the last layer's. The exits do not change."""
    exits.requires_grad_(False)
    probes = [w for cut in exits.cuts for w in (exits.after(cut).classifier.weight, exits.after(cut).classifier_bias)]
    for weight in probes:
        weight.requires_grad_(True)
    optimizer, random = torch.optim.AdamW(probes, CLASSIFIER_RATE, weight_decay=0.0), torch.Generator().manual_seed(5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for index in range(steps):
        states, wanted = teach(target, _mixed(training, written, TEXTS, random))
        choice, total = wanted.argmax(-1), torch.zeros(())
        for cut in exits.cuts:
            each = exits.after(cut)
            with torch.no_grad():
                right = (exit_logits(target, each, states[cut]).argmax(-1) == choice).float()
            total = total + binary_cross_entropy_with_logits(each.score(states[cut]), right)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()
        if index % 50 == 49:
            print(f"classifiers {index + 1}/{steps}: loss {total.item() / len(exits.cuts):.3f}", flush=True)
    exits.requires_grad_(False)


def new_exits(target: Gemma4ForCausalLM, cuts: tuple[int, ...]) -> Exits:
    """Exits that give the state as it is, and classifiers that say one half."""
    own = target.config
    exits = Exits(
        ExitsConfig(
            cuts=cuts, hidden_size=own.hidden_size, intermediate_size=INTERMEDIATE, rms_norm_eps=own.rms_norm_eps
        )
    )
    for name, weight in exits.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.ones_(weight)
        elif name.endswith(("down_proj.weight", "classifier.weight", "classifier_bias")):
            nn.init.zeros_(weight)
    return exits


@torch.no_grad()
def teach(target: Gemma4ForCausalLM, tokens: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """tokens [B, T] -> the states [B, T, D] after 0, 1... layers but the last, and the last's logits [B, T, V]."""
    output = target.model(input_ids=tokens, use_cache=False, output_hidden_states=True)
    return output.hidden_states[:-1], _head(target, output.last_hidden_state)


def exit_logits(target: Gemma4ForCausalLM, exit_: Exit | None, state: Tensor) -> Tensor:
    """[B, T, D] -> logits [B, T, V] of an exit, or without one those of the state as it is."""
    return _head(target, target.model.norm(state if exit_ is None else exit_(state)))


def publish(exits: Exits, out: Path) -> None:
    """bfloat16 weights, and the configuration that `Checkpoint` reads."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in exits.state_dict().items()}
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    exits.config.save_pretrained(out)


def _head(target: Gemma4ForCausalLM, normed: Tensor) -> Tensor:
    return softcapped(target.lm_head(normed), target)


if __name__ == "__main__":
    main()
