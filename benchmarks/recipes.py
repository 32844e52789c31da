"""What a recipe costs: size, quality of the target, acceptance with each half quantized apart and together, speed.

    pip download --no-deps botocore==1.44.5
    apt-get install bible-kjv diatheke sword-text-sparv
    python benchmarks/recipes.py --botocore botocore-1.44.5-py3-none-any.whl

All figures are of exported LiteRT graphs, one thread. Perplexity, KL (nats a token) and agreement of argmax with the
float target are over texts that neither training nor calibration saw, from a place after their start; acceptance is
greedy, four drafts a round, over the embedded prompts, and speed is taken there too, all recipes in turn on each
prompt. "calibrated" recipes round weights by `pocketdraft calibrate`, on training texts. The bits of `N bits` are
shared out by `pocketdraft mix`, which reads the same texts. The last line is JSON.

The physics: decoding reads every weight once a token, so bytes are speed where memory is the limit. The embedded
pair lies in the cache of a desktop, where int4 saves nothing and its unpacking shows.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from pocketdraft.export.calibrate import calibrate
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.isolated import build_isolated
from pocketdraft.export.pipeline import make_steps, open_models
from pocketdraft.export.plan import Plan, Recipes
from pocketdraft.export.sensitivity import mixed
from pocketdraft.export.step import Plain, all_weights
from pocketdraft.export.tiny import DRAFTER_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.export.tiny.corpus import Corpus, build_corpus
from pocketdraft.quantize.recipe import Recipe, load
from pocketdraft.runtime.cache import Cache
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.proposal import Proposal
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.stats import Stats
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer

FLOAT = load("f32")
DRAFTS, WIDTH, CONTEXT = 4, 64, 256
CALIBRATION_TEXTS, CALIBRATION_TOKENS = 16, 256  # of each domain; tokens of each
HELD_OUT_TEXTS, SKIPPED = 24, 64
Half = Literal["target", "drafter", "both"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """A recipe, and the checkpoints that it is for."""

    name: str
    recipe: Recipe
    target: Path = TARGET_DIR
    kv: Literal["float32", "int8"] = "float32"

    def export(self, half: Half, work: Path) -> Target:
        """Its bundle with one half as it is, or none."""
        own, out = self.recipe, work / self.name.replace(" ", "-") / half
        recipes = {
            "target": Recipes(own, FLOAT, own),
            "drafter": Recipes(FLOAT, own, FLOAT),
            "both": Recipes(own, own, own),
        }[half]
        plan = Plan(
            target=TARGET_DIR if half == "drafter" else self.target,
            drafters=(DRAFTER_DIR,),
            out=out,
            recipes=recipes,
            context=CONTEXT,
            prefill=(16, WIDTH),
            verify=(DRAFTS + 1, WIDTH),
            kv="float32" if half == "drafter" else self.kv,
        )
        build_isolated([plan], lambda *_: None)
        return Target(open_engine(out, threads=1))


@dataclass
class Found:
    """What was measured of a row. Bytes are those of all weights; bits are by weight, scales included."""

    bytes: dict[str, int]
    bits: dict[str, float]
    perplexity: float
    kl: float
    agreement: float
    accepted: dict[Half, float]
    by_position: list[float]
    plain: list[float] = field(default_factory=list)  # tokens/s, by prompt
    drafted: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        speed = {name: round(statistics.median(getattr(self, name)), 1) for name in ("plain", "drafted")}
        ratio = statistics.median(d / p for p, d in zip(self.plain, self.drafted, strict=True))
        return vars(self) | speed | {"ratio": round(ratio, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--botocore", type=Path, required=True, help="the wheel")
    parser.add_argument("--work", type=Path, default=Path("build/recipes"))
    parser.add_argument("--bits", type=float, default=5.9, help="a weight, of `mix`")
    parser.add_argument("--prompts", type=int, help="of each domain, else all")
    parser.add_argument("--max-tokens", type=int, default=96)
    chosen = parser.parse_args()
    files = Checkpoint.open(TARGET_DIR)
    tokenizer = Tokenizer(files.tokenizer_file, files.tokens().bos)
    corpus = build_corpus(chosen.botocore)
    texts = list(held_out(corpus, tokenizer))
    prompts = [tokenizer.encode(prompt.text) for prompt in read_prompts(PROMPTS_FILE, chosen.prompts)]
    wanted: list[Floats] = []
    found: dict[str, Found] = {}
    targets: dict[str, Target] = {}
    shapes = shapes_of_weights()
    for row in rows(list(calibration(corpus, tokenizer)), chosen.bits, chosen.work):
        halves = {half: row.export(half, chosen.work) for half in ("target", "drafter", "both")}
        target = halves["both"]
        read = [log_probabilities(target, text) for text in texts]
        wanted = wanted or read
        stats = {half: accepted(one, prompts, chosen.max_tokens) for half, one in halves.items()}
        targets[row.name] = target
        found[row.name] = Found(*size(shapes, row.recipe), *quality(read, wanted, texts), *stats_of(stats))
        print(f"{row.name}: KL {found[row.name].kl:.1e}", flush=True)
    for prompt in prompts:
        for name, target in targets.items():
            for method, into in (("none", found[name].plain), ("mtp", found[name].drafted)):
                into.append(generate(target, prompt, method, chosen.max_tokens).tokens_per_s)
    report({name: one.to_json() for name, one in found.items()})


def calibration(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[list[int]]:
    for texts in corpus.training.values():
        for text in texts[:CALIBRATION_TEXTS]:
            yield tokenizer.encode(text[: 8 * CALIBRATION_TOKENS])[:CALIBRATION_TOKENS]


def held_out(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """WIDTH + 1 tokens each, the last of which is only predicted."""
    place = random.Random(0)
    for texts in corpus.held_out.values():
        for text in texts[:HELD_OUT_TEXTS]:
            tokens = tokenizer.encode(text)
            start = place.randrange(max(1, len(tokens) - WIDTH - SKIPPED))
            if len(tokens[start:]) > WIDTH:
                yield [tokens[0], *tokens[start + 1 : start + WIDTH + 1]]


def rows(texts: list[list[int]], bits: float, work: Path) -> Iterator[Row]:
    yield Row("f32", FLOAT)
    w8, noted = load("w8"), work / "calibrated" / "w8"
    yield Row("w8", w8)
    files = Checkpoint.open(TARGET_DIR)
    calibrate(files, Recipes(w8, w8, w8), texts, noted)
    yield Row("w8, int8 K/V", w8, noted, "int8")
    recipes = {name: load(name) for name in ("mixed", "w4", "w4e2")}
    shared_out = mixed(files, texts[:: len(texts) // 16], bits, load("mixed"))
    recipes[shared_out.name] = shared_out
    for name, recipe in recipes.items():
        out = work / "calibrated" / name.replace(" ", "-")
        calibrate(files, Recipes(recipe, recipe, recipe), texts, out)
        yield Row(name, recipe)
        yield Row(f"{name} calibrated", recipe, out)


def shapes_of_weights() -> dict[str, tuple[int, int]]:
    models = open_models(Checkpoint.open(TARGET_DIR), Checkpoint.open(DRAFTER_DIR))
    recipes = Recipes(FLOAT, FLOAT, FLOAT)
    steps, _ = make_steps(Plan(TARGET_DIR, (DRAFTER_DIR,), Path(), recipes, context=CONTEXT), models, Plain())
    return {name: module.weight.shape for name, module in all_weights(steps).items()}


def size(shapes: dict[str, tuple[int, int]], recipe: Recipe) -> tuple[dict[str, int], dict[str, float]]:
    """Bytes, and bits a weight, of the target with its embedders and of the drafter."""
    halves: dict[str, list[str]] = {"target": [], "drafter": []}
    for name in shapes:
        halves["drafter" if name.startswith("drafter.") else "target"].append(name)
    taken = {half: sum(recipe.rule_for(n).size_bytes(*shapes[n]) for n in names) for half, names in halves.items()}
    count = {half: sum(math.prod(shapes[n]) for n in names) for half, names in halves.items()}
    return taken, {half: 8 * taken[half] / count[half] for half in halves}


def log_probabilities(target: Target, text: Sequence[int]) -> Floats:
    """[WIDTH, V], by one call of the widest verify."""
    cache = Cache(target.engine.new_cache(), target.context_length)
    logits = target.verify(cache, text[0], Proposal.chain(text[1:WIDTH])).logits.astype(np.float64)
    shifted: Floats = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def quality(read: list[Floats], wanted: list[Floats], texts: list[list[int]]) -> tuple[float, float, float]:
    """Perplexity, KL and agreement of argmax."""
    now, then = np.concatenate(read), np.concatenate(wanted)
    following = np.array([token for text in texts for token in text[1 : WIDTH + 1]])
    loss = -now[np.arange(len(now)), following].mean()
    kl = (np.exp(then) * (then - now)).sum(-1).mean()
    return math.exp(loss), float(kl), float((now.argmax(-1) == then.argmax(-1)).mean())


def generate(target: Target, prompt: list[int], method: str, budget: int) -> Stats:
    session = open_session(target.engine, method, DRAFTS, target)
    for _ in session.generate(prompt, budget):
        pass
    return session.stats


def accepted(target: Target, prompts: list[list[int]], budget: int) -> Stats:
    whole = Stats()
    for prompt in prompts:
        whole.outcomes.update(generate(target, prompt, "mtp", budget).outcomes)
    return whole


def stats_of(stats: dict[Half, Stats]) -> tuple[dict[Half, float], list[float]]:
    means = {half: round(one.accepted_per_round, 3) for half, one in stats.items()}
    return means, [round(share, 3) for share in stats["both"].acceptance_by_position()]


def report(found: dict[str, dict[str, Any]]) -> None:
    columns = ("recipe", "target MB, bits", "drafter MB, bits", "perplexity", "KL", "argmax")
    table = Table(*columns, "target", "drafter", "both", "by position", "plain", "drafted", "ratio")
    for name, one in found.items():
        table.add_row(
            name,
            *(f"{one['bytes'][part] / 1e6:.2f}, {one['bits'][part]:.1f}" for part in ("target", "drafter")),
            f"{one['perplexity']:.2f}",
            f"{one['kl']:.1e}",
            f"{one['agreement']:.1%}",
            *(f"{one['accepted'][half]:.2f}" for half in ("target", "drafter", "both")),
            " ".join(f"{share:.2f}" for share in one["by_position"]),
            *(f"{one[name]:,.0f}" for name in ("plain", "drafted")),
            f"{one['ratio']:.2f}",
        )
    Console(width=200).print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
