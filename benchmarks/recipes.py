"""What a recipe costs: size, the target's quality on held-out text, and acceptance, for each half apart and together.

    python benchmarks/recipes.py [--recipes w8,mixed,w4] [--calibration FILE] [--text FILE --width 240]

The graphs are emulated in torch as LiteRT computes them: weights on their grids, activations int8. Perplexity, KL
(nats a token) and agreement of argmax are the target's, against the float target, on the texts' first `width` tokens.
Acceptance is greedy, four drafts a round, over the prompts: of the quantized target with the float drafter, of the
float target with the quantized drafter, of both. With --calibration each recipe is also tried with method = "gptq" for
its int4 and int2 rules, calibrated on that file. The table is Markdown; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pocketdraft.export.backends.eager import EagerEngine
from pocketdraft.export.backends.litert import quantize_steps
from pocketdraft.export.calibrate import calibrate
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.pipeline import load_models, make_steps
from pocketdraft.export.plan import Plan, Recipes
from pocketdraft.export.step import Plain, Step, all_weights
from pocketdraft.export.steps.mtp import drafter_spec
from pocketdraft.export.tiny import DRAFTER_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.quantize.recipe import Recipe, load
from pocketdraft.runtime.manifest import FORMAT_VERSION, Manifest, Source
from pocketdraft.runtime.prompts import Prompt, read_prompts
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.stats import Stats
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer

DRAFTS = 4
FLOAT = load("f32")
PARTS = ("target", "drafter", "both")  # which of them the acceptance is measured with quantized


@dataclass(frozen=True)
class Pair:
    """Two checkpoints and the recipe of each; the target's is the embedders' too."""

    target: Path
    drafter: Path
    target_recipe: Recipe = FLOAT
    drafter_recipe: Recipe = FLOAT

    def open(self, width: int) -> tuple[EagerEngine, list[Step]]:
        """An engine to draft with, and its steps, of which `verify` of `width` tokens reads texts."""
        recipes = Recipes(self.target_recipe, self.drafter_recipe, self.target_recipe)
        plan = Plan(self.target, self.drafter, Path(), recipes, context=256, verify=(DRAFTS + 1, width))
        files = Checkpoint.open(self.target), Checkpoint.open(self.drafter)
        models = load_models(*files)
        steps, layout = make_steps(plan, models, Plain())
        quantize_steps(steps, recipes)
        head = "centroid" if models.drafter.has_centroids else "dense"
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            backend="litert",
            context_length=plan.context,
            vocab_size=models.target.geometry.vocab,
            kv=layout.layers,
            graphs=tuple(step.spec for step in steps),
            parts={},
            drafter=drafter_spec(models.target.geometry, head, plan.position),
            tokens=files[0].tokens(),
            recipe={},
            source=Source(target="", target_sha256="", drafter="", drafter_sha256=""),
            versions={},
            files={},
        )
        return EagerEngine(manifest, steps), steps


@torch.no_grad()
def log_probabilities(steps: Sequence[Step], texts: Sequence[list[int]], width: int) -> Tensor:
    """[texts * width, V]: after each of a text's first `width` tokens."""
    roles = {step.spec.role: step for step in steps}
    verify = next(step for step in steps if step.spec.role == "verify" and step.spec.width == width)
    found = []
    for text in texts:
        ids = torch.tensor([text[:width]], dtype=torch.int32)
        feed = verify.sample_inputs()
        feed["embeddings"] = roles["embed"].module(token_ids=ids)["embeddings"]
        if "embed_per_layer" in roles:
            feed["per_layer_embeddings"] = roles["embed_per_layer"].module(token_ids=ids)["embeddings"]
        feed["input_pos"] = torch.arange(width, dtype=torch.int32)
        feed["mask"] = (torch.arange(feed["mask"].shape[-1]) <= feed["input_pos"][:, None])[None, None]
        found.append(verify.module(**feed)["logits"][0].log_softmax(-1))
    return torch.cat(found)


def quality(now: Tensor, wanted: Tensor, texts: Sequence[list[int]], width: int) -> dict[str, float]:
    following = torch.tensor([token for text in texts for token in text[1 : width + 1]])
    return {
        "perplexity": math.exp(-float(now.gather(-1, following[:, None]).mean())),
        "kl": float((wanted.exp() * (wanted - now)).sum(-1).mean()),
        "agreement": float((wanted.argmax(-1) == now.argmax(-1)).float().mean()),
    }


def acceptance(engine: EagerEngine, tokenizer: Tokenizer, prompts: Sequence[Prompt], budget: int) -> Stats:
    target, stats = Target(engine), Stats()
    for prompt in prompts:
        session = open_session(engine, "mtp", DRAFTS, target)
        session.stats = stats
        for _ in session.generate(tokenizer.encode(prompt.text), budget):
            pass
    return stats


def size(steps: Sequence[Step], recipe: Recipe, parts: Sequence[str]) -> tuple[int, int]:
    """Bytes and weights of these parts."""
    weights = {name: tuple(m.weight.shape) for name, m in all_weights(list(steps)).items()}
    own = {name: shape for name, shape in weights.items() if name.partition(".")[0] in parts}
    count = sum(rows * columns for rows, columns in own.values())
    return sum(recipe.rule_for(name).size_bytes(*shape) for name, shape in own.items()), count


def with_gptq(recipe: Recipe) -> Recipe:
    """Its rules of few bits calibrated."""
    rules = [rule.model_copy(update={"method": "gptq" if rule.bits < 8 else "round"}) for rule in recipe.rule]
    return Recipe(name=f"{recipe.name} gptq", rule=tuple(rules))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=TARGET_DIR)
    parser.add_argument("--drafter", type=Path, default=DRAFTER_DIR)
    parser.add_argument("--recipes", default="w8,mixed,w4")
    parser.add_argument("--calibration", type=Path, help="JSONL of texts, other than those measured on")
    parser.add_argument("--text", type=Path, default=PROMPTS_FILE, help="JSONL of the texts that the target reads")
    parser.add_argument("--prompts", type=Path, default=PROMPTS_FILE)
    parser.add_argument("--width", type=int, default=48, help="tokens of each text")
    parser.add_argument("--max-tokens", type=int, default=96)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    files, plain = Checkpoint.open(chosen.target), Pair(chosen.target, chosen.drafter)
    tokenizer = Tokenizer(files.tokenizer_file, files.text_config.bos_token_id)
    texts = [tokenizer.encode(prompt.text) for prompt in read_prompts(chosen.text)]
    texts = [text for text in texts if len(text) > chosen.width]
    prompts = read_prompts(chosen.prompts)
    engine, steps = plain.open(chosen.width)
    wanted = log_probabilities(steps, texts, chosen.width)
    float_stats = acceptance(engine, tokenizer, prompts, chosen.max_tokens)
    found = {"f32": row(steps, FLOAT, quality(wanted, wanted, texts, chosen.width), *[float_stats] * 3)}
    pairs = []
    with tempfile.TemporaryDirectory() as work:
        for name in chosen.recipes.split(","):
            recipe = load(name)
            pairs.append((recipe.name, Pair(chosen.target, chosen.drafter, recipe, recipe)))
            if chosen.calibration and any(rule.bits < 8 for rule in recipe.rule):
                tried, out = with_gptq(recipe), Path(work) / recipe.name
                calibration = [tokenizer.encode(prompt.text) for prompt in read_prompts(chosen.calibration)]
                calibrate(Plan(chosen.target, chosen.drafter, out, Recipes(tried, tried, tried)), calibration)
                pairs.append((tried.name, Pair(out / "target", out / "drafter", tried, tried)))
        for label, pair in pairs:
            alone = Pair(pair.target, chosen.drafter, pair.target_recipe)
            engine, steps = alone.open(chosen.width)
            measured = quality(log_probabilities(steps, texts, chosen.width), wanted, texts, chosen.width)
            stats = [acceptance(engine, tokenizer, prompts, chosen.max_tokens)]
            for other in (Pair(chosen.target, pair.drafter, FLOAT, pair.drafter_recipe), pair):
                engine, steps = other.open(chosen.width)
                stats.append(acceptance(engine, tokenizer, prompts, chosen.max_tokens))
            found[label] = row(steps, pair.target_recipe, measured, *stats)
    report(found)


def row(steps: Sequence[Step], recipe: Recipe, measured: dict[str, float], *stats: Stats) -> dict[str, object]:
    target = size(steps, recipe, ("target", "embedder", "per_layer_embedder"))
    drafter = size(steps, recipe, ("drafter",))
    accepted = {
        name: {"mean": round(s.accepted_per_round, 3), "by_position": [round(p, 3) for p in s.acceptance_by_position()]}
        for name, s in zip(PARTS, stats, strict=True)
    }
    sizes = {"target_bytes": target[0], "drafter_bytes": drafter[0]}
    bits = {"target_bits": 8 * target[0] / target[1], "drafter_bits": 8 * drafter[0] / drafter[1]}
    return {**sizes, **bits, **measured, "accepted": accepted}


def report(found: dict[str, dict[str, object]]) -> None:
    heads = ("recipe", "target MB, bits", "drafter MB, bits", "perplexity", "KL", "argmax", *PARTS, "both, by position")
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for name, one in found.items():
        accepted: dict = one["accepted"]  # type: ignore[assignment]
        sizes = [f"{one[f'{part}_bytes'] / 1e6:.2f}, {one[f'{part}_bits']:.1f}" for part in ("target", "drafter")]  # type: ignore[operator]
        figures = f"{one['perplexity']:.2f} | {one['kl']:.1e} | {one['agreement']:.1%}"
        means = " | ".join(f"{accepted[part]['mean']:.2f}" for part in PARTS)
        positions = " ".join(f"{share:.2f}" for share in accepted["both"]["by_position"])
        print(f"| {name} | {sizes[0]} | {sizes[1]} | {figures} | {means} | {positions} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
