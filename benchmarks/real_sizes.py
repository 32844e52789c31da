"""An export at true size, against what `pocketdraft plan` said of it; then the bundle in this runtime and LiteRT-LM.

    python benchmarks/real_sizes.py --size e2b [--layers N] [--recipe w4] [--context 4096] [--work build/sizes]

The weights are random, at the public configurations: the same graphs, bytes and memory as the real checkpoint, and
nothing of its quality (no draft is accepted). A size whose depth is cut by `--layers` keeps its true width.

The physics: an export reads each weight once and writes a fraction of it, so its memory is that of the converter,
whatever the size; decoding reads all weights but the embedding tables once a token, so that their bytes over its time
is the machine's memory bandwidth, and a verify costs no more while its kernels read each weight once.

The tokenizer gives each id a name of its own, so that LiteRT-LM's text tells its tokens. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from pocketdraft.export.cache import Cache
from pocketdraft.export.estimate import Estimate, estimate
from pocketdraft.export.isolated import build_isolated
from pocketdraft.export.plan import Plan, Recipes
from pocketdraft.export.sizes import configs
from pocketdraft.export.sizes.random import cut, random_checkpoint
from pocketdraft.quantize.recipe import load
from pocketdraft.runtime import litert_lm, terminal
from pocketdraft.runtime.cache import Cache as KVCache
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.manifest import read
from pocketdraft.runtime.proposal import NOTHING
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.validate import verify_gap

PROMPT = [2, 1000, 77, 31_337, 4, 150_000, 9, 2048]
NAMED = re.compile(r"<(\d+)>")


@dataclass(frozen=True)
class Ran:
    """One loop on the bundle: `seconds` of decoding `tokens` one by one, `drafted_seconds` with drafts.

    `margin` is that of the best over the second logit where the two part, `gap` the largest difference of a logit
    between decoding and verifying the same tokens: parting where the margin is smaller is a near-tie.
    """

    tokens: list[int]
    drafted_tokens: list[int]
    seconds: float
    drafted_seconds: float
    open_seconds: float
    peak_gb: float
    margin: float | None = None
    gap: float | None = None


def main() -> None:
    chosen = arguments()
    terminal.silence_native_code()
    name = chosen.size if chosen.layers is None else f"{chosen.size}-{chosen.layers}"
    folder = chosen.work / name
    pair = configs(chosen.size) if chosen.layers is None else cut(configs(chosen.size), chosen.layers)
    if not (folder / "drafter").exists():
        random_checkpoint(pair, folder)
        for part in ("target", "drafter"):
            (folder / part / "tokenizer.json").write_text(numbered_tokenizer(pair[0].vocab_size))
    recipe = load(chosen.recipe)
    with tempfile.TemporaryDirectory(dir=chosen.work) as scratch:
        plan = Plan(
            target=folder / "target",
            drafters=(folder / "drafter",),
            out=folder / chosen.recipe,
            recipes=Recipes(recipe, recipe, recipe),
            context=chosen.context,
            prefill=chosen.prefill,
            verify=(5,),
            cache=Cache(Path(scratch), 0),  # every export from nothing
        )
        expected = estimate(plan, *pair)
        found = export(plan)
    found["bundle_gb"] = read(plan.out).size / 1e9
    file = plan.out / "model.litertlm"
    ours, theirs = run_ours(plan.out, chosen.tokens), run_litert_lm(file, chosen.tokens)
    if not chosen.keep:
        shutil.rmtree(plan.out)
    report(name, chosen.recipe, expected, found, ours, theirs)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="e2b")
    parser.add_argument("--layers", type=int, help="of the target, the whole if left out")
    parser.add_argument("--recipe", default="w4")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--prefill", type=lambda text: tuple(map(int, text.split(","))), default=(128,))
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--work", type=Path, default=Path("build/sizes"))
    parser.add_argument("--keep", action="store_true", help="the bundle")
    return parser.parse_args()


def export(plan: Plan) -> dict[str, float]:
    """Seconds and the peak resident memory of the process that does the work, in GB."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with terminal.progress(quiet=False) as advance:
        build_isolated([plan], advance)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_gb": after.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9,
    }


def run_ours(bundle: Path, budget: int) -> Ran:
    """In a process of its own, so that its memory is that of the runtime alone."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_ours, (bundle, budget))


def _ours(bundle: Path, budget: int) -> Ran:
    terminal.silence_native_code()
    started = time.perf_counter()
    engine = open_engine(bundle, 2)
    opened, target, outputs, seconds = time.perf_counter() - started, Target(engine), [], []
    for drafter in ("none", "mtp"):
        session = open_session(engine, drafter, 4, target)
        outputs.append([token for emitted in session.generate(PROMPT, budget) for token in emitted.tokens])
        seconds.append(session.stats.total_s)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    at = next((i for i, (a, b) in enumerate(zip(*outputs, strict=True)) if a != b), None)
    margin = None if at is None else margin_after(target, [*PROMPT, *outputs[0][:at]])
    return Ran(*outputs, *seconds, opened, peak, margin, verify_gap(target, PROMPT))


def margin_after(target: Target, tokens: list[int]) -> float:
    cache = KVCache(target.engine.new_cache(), target.context_length)
    target.prefill(cache, tokens[:-1])
    logits = np.sort(target.verify(cache, tokens[-1], NOTHING).logits[0])
    return float(logits[-1] - logits[-2])


def run_litert_lm(file: Path, budget: int) -> Ran:
    text = "".join(f"<{token}>" for token in PROMPT[1:])  # it puts the first one before by itself
    started = time.perf_counter()
    replies = [litert_lm.run(file, [text], budget, speculate, threads=2) for speculate in (False, True)]
    tokens = [[int(token) for token in NAMED.findall(reply.texts[0])][:budget] for reply in replies]
    seconds = [reply.decode_s[0] for reply in replies]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    return Ran(*tokens, *seconds, open_seconds=time.perf_counter() - started - sum(seconds), peak_gb=peak)


def numbered_tokenizer(vocabulary: int) -> str:
    """A tokenizer.json in which token 17 is the text <17>."""
    unknown = "<0>"
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"<\d+>"}, "behavior": "Isolated", "invert": False},
            "post_processor": None,
            "decoder": {"type": "Fuse"},
            "model": {
                "type": "WordLevel",
                "vocab": {f"<{token}>": token for token in range(vocabulary)},
                "unk_token": unknown,
            },
        }
    )


def report(name: str, recipe: str, expected: Estimate, found: dict[str, float], ours: Ran, theirs: Ran) -> None:
    console = Console(width=110)
    table = Table("", "planned", "measured", title=f"{name}, {recipe}: the export")
    table.add_row("bundle, GB", f"{expected.bundle_bytes / 1e9:.2f}", f"{found['bundle_gb']:.2f}")
    table.add_row("peak memory, GB", f"{expected.peak_bytes / 1e9:.2f}", f"{found['peak_gb']:.2f}")
    table.add_row("seconds", f"{expected.seconds:.0f}", f"{found['seconds']:.0f} ({found['cpu_seconds']:.0f} of CPU)")
    console.print(table)
    table = Table(
        "loop, two threads", "ms a token", "with 4 drafts, all refused", "peak memory, GB", title="The bundle"
    )
    for loop, ran in (("pocketdraft", ours), ("LiteRT-LM", theirs)):
        count = len(ran.tokens)
        table.add_row(
            loop,
            f"{1e3 * ran.seconds / count:.0f}",
            f"{1e3 * ran.drafted_seconds / count:.0f}",
            f"{ran.peak_gb:.1f}",
        )
    console.print(table)
    same = [ours.tokens == other for other in (ours.drafted_tokens, theirs.tokens, theirs.drafted_tokens)]
    console.print(f"tokens are those of plain decoding here: drafted {same[0]}, LiteRT-LM {same[1]}, drafted {same[2]}")
    console.print(f"drafted tokens are the same in both: {ours.drafted_tokens == theirs.drafted_tokens}")
    if ours.margin is not None:
        console.print(f"they part where the margin is {ours.margin:.1e}; decode and verify differ by {ours.gap:.1e}")
    result = {
        "size": name,
        "recipe": recipe,
        "planned": {
            "bundle_gb": expected.bundle_bytes / 1e9,
            "peak_gb": expected.peak_bytes / 1e9,
            "seconds": expected.seconds,
        },
        "measured": found,
        "pocketdraft": asdict(ours),
        "litert_lm": asdict(theirs),
        "same": same,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
