"""One bundle measured, or several side by side: backends, recipes, or what a change did."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bench import DomainBench, bench
from .engine import Engine, open_engine
from .ladder import Difference, climb, compare, enough_tokens
from .manifest import Manifest
from .prompts import Prompt
from .target import Target
from .text import Tokenizer
from .validate import Check, Rungs, cross_check

Advance = Callable[[str, int, int], None]
STRETCHES = 16  # of the prompts' text, on which a bundle is compared with the reference


@dataclass(frozen=True)
class Parity:
    """The bundle's graphs against transformers: `max_error` of all outputs, else of the target's logits, in nats."""

    max_error: float
    argmax_agreement: float
    kl: float


@dataclass(frozen=True)
class BundleBench:
    """`parity` is None where torch or the checkpoints are not at hand."""

    bundle: Path
    manifest: Manifest
    domains: dict[str, DomainBench]
    litert_lm: Check
    parity: Parity | None

    @property
    def identical(self) -> bool:
        return all(domain.identical for domain in self.domains.values())

    @property
    def passed(self) -> bool:
        return self.identical and self.litert_lm.outcome != "fail"

    def tokens_per_s(self, method: str) -> float:
        """Mean over domains of the medians over prompts."""
        return statistics.mean(domain.tokens_per_s(method) for domain in self.domains.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "identical": self.identical,
            "litert_lm_identical": {"pass": True, "fail": False}.get(self.litert_lm.outcome),
            "accepted_per_round": {
                name: round(domain.stats["mtp"].accepted_per_round, 3) for name, domain in self.domains.items()
            },
            "plain_tokens_per_s": round(self.tokens_per_s("none"), 1),
            "drafted_tokens_per_s": round(self.tokens_per_s("mtp"), 1),
            "bundle": self.bundle.name,
            "backend": self.manifest.backend,
            "recipe": self.manifest.recipe_name,
            "bytes": self.manifest.size,
            "parity": vars(self.parity) if self.parity else None,
            "by_domain": {name: domain.to_json() for name, domain in self.domains.items()},
        }


def bench_bundle(
    bundle: Path,
    prompts: Sequence[Prompt],
    max_tokens: int,
    drafts: int,
    threads: int,
    rungs_of: Callable[[Manifest], Rungs | None],
    advance: Advance,
) -> BundleBench:
    """`rungs_of` gives the ladder's upper rungs for a manifest, of which the first is the reference."""
    engine = open_engine(bundle, threads)
    manifest = engine.manifest
    tokenizer = Tokenizer(bundle / "tokenizer.json", manifest.tokens.bos)
    domains = bench(
        Target(engine),
        tokenizer,
        prompts,
        max_tokens,
        drafts,
        lambda done: advance(f"Plain and drafted, {bundle.name}", done, len(prompts)),
    )
    advance(f"References, {bundle.name}", 0, 1)
    outputs = [list(run.tokens) for domain in domains.values() for run in domain.runs["none"]]
    texts = [prompt.text for name in domains for prompt in prompts if prompt.domain == name]
    litert_lm = cross_check(bundle, manifest, texts, tokenizer, outputs, max_tokens)
    rungs = rungs_of(manifest)
    parity = against_reference(engine, next(rungs)[1], stretches(tokenizer, prompts)) if rungs else None
    engine.close()
    return BundleBench(bundle, manifest, domains, litert_lm, parity)


def stretches(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[list[int]]:
    """A few long texts of all prompts."""
    return [
        [token for prompt in prompts[start::STRETCHES] for token in tokenizer.encode(prompt.text)]
        for start in range(min(STRETCHES, len(prompts)))
    ]


def against_reference(engine: Engine, reference: Engine, texts: Sequence[Sequence[int]]) -> Parity:
    """Every graph once on each text, the reference's inputs on both sides."""
    rows: list[Difference] = []
    for text in texts:
        tokens = enough_tokens(engine.manifest, text)
        wanted, feed = climb(engine.manifest, reference, tokens, None)
        found, _ = climb(engine.manifest, engine, tokens, feed)
        rows += compare(wanted, found, dict.fromkeys(found))
    drafts = {graph.name for graph in engine.manifest.graphs_of("draft")}
    judged = [row for row in rows if row.kl is not None and row.graph not in drafts]
    return Parity(
        max_error=max(row.max_error for row in rows),
        argmax_agreement=statistics.mean(row.argmax_agreement or 0.0 for row in judged),
        kl=statistics.mean(row.kl or 0.0 for row in judged),
    )
