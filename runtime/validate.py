"""Is the bundle what it claims to be? The parity ladder, the law, and the cross-check in LiteRT-LM."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import litert_lm
from .drafter_specs import MTPSpec
from .drafters import runnable
from .engine import Arrays, Delegating, Engine
from .ladder import Difference, Feed, climb, compare, enough_tokens
from .manifest import Manifest
from .proposal import NOTHING, Proposal
from .replay import Calls, note, replay
from .session import open_session
from .target import Floats, Target
from .text import Tokenizer

FLOAT_LIMIT = 1e-3  # largest error of a float graph's outputs, in their own units
# Rounding is chaotic: what differs in a last bit at first shares nothing but its size after some layers, and two such
# roundings lie sqrt(2) as far from each other as from the float. The rest is room for few rows.
ROUNDINGS_APART = 2.0
Progress = Callable[[str], None]
Rungs = Iterator[tuple[str, Engine]]


@dataclass(frozen=True)
class Check:
    """`info` is reported and cannot fail; `skipped` says why in `detail`."""

    name: str
    outcome: Literal["pass", "fail", "info", "skipped"]
    detail: str


@dataclass
class Validation:
    checks: list[Check] = field(default_factory=list)
    ladder: dict[str, list[Difference]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        ladder = all(d.passed for rung in self.ladder.values() for d in rung)
        return ladder and all(check.outcome != "fail" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        rungs = {name: [asdict(d) | {"passed": d.passed} for d in rung] for name, rung in self.ladder.items()}
        return {"passed": self.passed, "checks": [asdict(c) for c in self.checks], "ladder": rungs}


def validate(
    folder: Path, engine: Engine, texts: Sequence[str], budget: int, rungs: Rungs | None, progress: Progress
) -> Validation:
    """`rungs` come from `export.rungs`; without them the ladder is skipped, for want of torch or checkpoints."""
    manifest, found = engine.manifest, Validation()
    tokenizer = Tokenizer(folder / "tokenizer.json", manifest.tokens.bos)
    prompts = [tokenizer.encode(text) for text in texts]
    progress("Parity ladder")
    if rungs is None:
        found.checks.append(
            Check("parity ladder", "skipped", "give --target and --drafter, and install pocketdraft[export]")
        )
    else:
        found.ladder = _climb_all(engine, rungs, prompts)
        compared = {row.graph for rows in found.ladder.values() for row in rows}
        missed = [graph.name for graph in manifest.graphs if graph.name not in compared]
        if missed:
            found.checks.append(Check("parity ladder", "info", f"no call runs {', '.join(missed)}: not compared"))
    progress("T=1 decode against T=K verify")
    target = Target(engine)
    gap = verify_gap(target, prompts[0])
    found.checks.append(Check("T=1 decode vs T=K verify", "info", f"logits differ by at most {gap:.2e}"))
    outputs = []
    for index, prompt in enumerate(prompts):
        progress(f"Plain against drafted, prompt {index + 1} of {len(prompts)}")
        outputs.append(_generate(target, prompt, "none", budget))
    for drafter in runnable(manifest.drafters):
        drafted = [_generate(target, prompt, drafter, budget) for prompt in prompts]
        found.checks.append(_identity(target, drafter, prompts, outputs, drafted, gap))
    if manifest.drafters.mtp:
        progress("The drafter's position")
        found.checks.append(position_check(engine, manifest.drafters.mtp, prompts, budget))
    progress("LiteRT-LM")
    found.checks.append(cross_check(folder, manifest, texts, tokenizer, outputs, budget))
    return found


class _Moved(Delegating):
    """An engine whose drafter sits at the other position: p - 1 where it was exported for p, and the reverse."""

    def __init__(self, engine: Engine, spec: MTPSpec) -> None:
        super().__init__(engine)
        self._draft = engine.manifest.graphs_of("draft")[0].name
        self._by = np.int32(-1 if spec.position == "pending" else 1)

    def run(self, graph: str, inputs: Arrays, cache: Any = None) -> dict[str, Any]:
        if graph == self._draft:
            inputs = {**inputs, "input_pos": inputs["input_pos"] + self._by}
        return super().run(graph, inputs, cache)


def position_check(engine: Engine, spec: MTPSpec, prompts: Sequence[list[int]], budget: int) -> Check:
    """Which position the drafter was trained at shows in what is accepted; the output is the same at either."""

    def accepted(engine: Engine) -> list[float]:
        target, found = Target(engine), []
        for prompt in prompts:
            session = open_session(engine, "mtp", target=target)
            deque(session.generate(prompt, budget), maxlen=0)
            found.append(session.stats.accepted_per_round)
        return found

    mine = spec.position
    other = "last_cached" if mine == "pending" else "pending"
    here, there = np.array(accepted(engine)), np.array(accepted(_Moved(engine, spec)))
    gain = there - here
    # Two standard errors of the paired difference: below that the prompts are too few to tell.
    sure = len(prompts) > 1 and gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(len(prompts))
    detail = f"accepts {here.mean():.2f} drafts a round at {mine}, as exported; {there.mean():.2f} at {other}"
    return Check("drafter's position", "info", detail + (f": export again with --position {other}" if sure else ""))


def verify_gap(target: Target, prompt: Sequence[int]) -> float:
    """Largest difference in logits between decoding tokens one by one and verifying them together."""
    cache = target.new_cache()
    target.prefill(cache, prompt[:-1])
    start, token, tokens, single = cache.length, prompt[-1], [], []
    for _ in range(min(target.longest_draft(cache) + 1, cache.room)):
        verified = target.verify(cache, token, NOTHING)
        tokens.append(token)
        single.append(verified.logits[0])
        cache.advance(1)
        token = int(verified.logits[0].argmax())
    gap = 0.0
    for width in range(2, len(tokens) + 1):
        cache.truncate(start)
        together = target.verify(cache, tokens[0], Proposal.chain(tokens[1:width])).logits
        gap = max(gap, float(np.abs(together - np.stack(single[:width])).max()))
    return gap


def cross_check(
    folder: Path, manifest: Manifest, texts: Sequence[str], tokenizer: Tokenizer, outputs: list[list[int]], budget: int
) -> Check:
    """LiteRT-LM's text, speculation off and on, against ours. It spells special tokens out, but for stop tokens."""
    file, stop = manifest.parts["target"].file, manifest.tokens.stop
    name = "LiteRT-LM"
    if manifest.backend != "litert":
        return Check(name, "skipped", f"it opens LiteRT bundles, this one is for {manifest.backend}")
    if manifest.target_memory:
        return Check(name, "skipped", "it keeps K/V only, and knows no recurrent layers")
    if not litert_lm.installed():
        return Check(name, "skipped", "install pocketdraft[litert-lm] to run the bundle in LiteRT-LM itself")
    # LiteRT-LM does not open a file without its kind of drafter if it is to speculate.
    ways = {"off": False} | ({"on": True} if manifest.drafters.mtp else {})
    replies = {way: litert_lm.run(folder / file, texts, budget, speculate) for way, speculate in ways.items()}
    for speculation, reply in replies.items():
        for index, theirs in enumerate(reply.texts):
            ours = tokenizer.decode([token for token in outputs[index] if token not in stop], special=True)
            if not litert_lm.same_text(ours, theirs):
                return Check(
                    name, "fail", f"speculation {speculation}, prompt {index + 1}: {theirs[:60]!r}, ours {ours[:60]!r}"
                )
    rate = replies["on"].success_rate if "on" in replies else None
    accepted = f", it accepted {rate:.1%} of its drafts" if rate is not None else ""
    return Check(name, "pass", f"same text with speculation {' and '.join(ways)}, {len(texts)} prompts{accepted}")


def _climb_all(engine: Engine, rungs: Rungs, prompts: list[list[int]]) -> dict[str, list[Difference]]:
    """Compares each rung with the one above. A float rung must agree to FLOAT_LIMIT.

    What quantization costs is reported; the quantized graph must then be no further from the quantized step than
    `ROUNDINGS_APART` times what that step is from the float one.
    """
    tokens = enough_tokens(engine.manifest, [token for prompt in prompts for token in prompt])
    found: dict[str, list[Difference]] = {}
    above: tuple[str, dict[str, dict[str, Floats]]] | None = None
    feed: Feed | None = None
    noted: list[Calls] = []
    cost: dict[str, float] = {}
    for name, rung in _then(rungs, ("graph", engine)):
        outputs, feed = climb(engine.manifest, rung, tokens, feed)
        noted = noted or note(rung, tokens)
        outputs |= replay(rung, noted)
        if above:
            quantizing = name == "quantized step"
            limits = {
                graph: None if quantizing else max(FLOAT_LIMIT, ROUNDINGS_APART * cost.get(graph, 0.0))
                for graph in outputs
            }
            # Not the largest error: with a centroid head one near-tie between centroids moves a logit by units.
            rows = compare(above[1], outputs, limits, "mean" if cost else "max")
            if quantizing:
                cost = {difference.graph: difference.mean_error for difference in rows}
            found[f"{above[0]} -> {name}"] = rows
        above = (name, outputs)
    return found


def _then(rungs: Rungs, last: tuple[str, Engine]) -> Rungs:
    """Lazily: a later rung may change the one before in place."""
    yield from rungs
    yield last


def _generate(target: Target, prompt: list[int], drafter: str, budget: int) -> list[int]:
    session = open_session(target.engine, drafter, target=target)
    tokens = [token for emitted in session.generate(prompt, budget) for token in emitted.tokens]
    session.stats.check()
    return tokens


def _identity(
    target: Target,
    drafter: str,
    prompts: list[list[int]],
    plain: list[list[int]],
    drafted: list[list[int]],
    gap: float,
) -> Check:
    name = f"{drafter} vs plain"
    near_ties = []
    for number, (prompt, ours, theirs) in enumerate(zip(prompts, plain, drafted, strict=True), 1):
        if ours == theirs:
            continue
        at = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        margin = _margin(target, [*prompt, *ours[:at]])
        if margin > gap:
            return Check(
                name, "fail", f"prompt {number} differs at token {at}, where the top two are {margin:.2e} apart"
            )
        near_ties.append(f"prompt {number} token {at} (margin {margin:.2e})")
    if near_ties:
        return Check(name, "info", f"identical but for near-ties: {', '.join(near_ties)}")
    return Check(name, "pass", f"identical tokens on {len(prompts)} prompts")


def _margin(target: Target, tokens: list[int]) -> float:
    """How far apart the best two logits are after `tokens`."""
    cache = target.new_cache()
    target.prefill(cache, tokens[:-1])
    top = np.sort(target.verify(cache, tokens[-1], NOTHING).logits[0])[-2:]
    return float(top[1] - top[0])
