"""Plain against drafted decoding on the bundle itself: paired prompt by prompt, so that noise hits both alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .prompts import Prompt
from .session import Session, open_session
from .stats import Stats
from .target import Target
from .text import Tokenizer

METHODS = ("none", "mtp", "prompt_lookup")
NOVEL_TOKENS = 4


@dataclass(frozen=True)
class Run:
    """One generation. `decode_s` is the time of its rounds, without the prompt's prefill."""

    tokens: tuple[int, ...]
    decode_s: float
    novel: tuple[int, ...]  # accepted drafts of the rounds that wrote something new

    @property
    def tokens_per_s(self) -> float:
        return len(self.tokens) / self.decode_s


@dataclass
class DomainBench:
    """Runs of one domain by method, and the counts over all of them."""

    runs: dict[str, list[Run]] = field(default_factory=lambda: {method: [] for method in METHODS})
    stats: dict[str, Stats] = field(default_factory=lambda: {method: Stats() for method in METHODS})

    def tokens_per_s(self, method: str) -> float:
        """Median over prompts."""
        return statistics.median(run.tokens_per_s for run in self.runs[method])

    @property
    def ratio(self) -> float:
        """Median over prompts of drafted over plain speed."""
        pairs = zip(self.runs["none"], self.runs["mtp"], strict=True)
        return statistics.median(drafted.tokens_per_s / plain.tokens_per_s for plain, drafted in pairs)

    @property
    def identical(self) -> bool:
        plain = [run.tokens for run in self.runs["none"]]
        return all([run.tokens for run in self.runs[method]] == plain for method in METHODS)

    @property
    def novel_accepted(self) -> float:
        """Mean accepted drafts over rounds whose next tokens had not occurred before: what loops cannot flatter."""
        accepted = [count for run in self.runs["mtp"] for count in run.novel]
        return statistics.mean(accepted) if accepted else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "accepted_per_round": round(self.stats["mtp"].accepted_per_round, 3),
            "novel_accepted_per_round": round(self.novel_accepted, 3),
            "prompt_lookup_accepted_per_round": round(
                self.stats["prompt_lookup"].accepted / max(1, self.stats["prompt_lookup"].rounds), 3
            ),
            "acceptance_by_position": [round(share, 3) for share in self.stats["mtp"].acceptance_by_position()],
            "plain_tokens_per_s": round(self.tokens_per_s("none"), 1),
            "drafted_tokens_per_s": round(self.tokens_per_s("mtp"), 1),
            "ratio": round(self.ratio, 3),
            "identical": self.identical,
        }


def bench(
    target: Target,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    budget: int,
    drafts: int,
    progress: Callable[[int], None],
) -> dict[str, DomainBench]:
    """By domain. The methods take turns on each prompt, after one prompt to warm up."""
    found: dict[str, DomainBench] = {}
    for method in METHODS:
        run(open_session(target.engine, method, drafts, target), tokenizer.encode(prompts[0].text), budget)
    for index, prompt in enumerate(prompts):
        domain = found.setdefault(prompt.domain, DomainBench())
        turn = METHODS[index % 3 :] + METHODS[: index % 3]
        for method in turn:
            session = open_session(target.engine, method, drafts, target)
            session.stats = domain.stats[method]
            domain.runs[method].append(run(session, tokenizer.encode(prompt.text), budget))
        progress(index + 1)
    return found


def run(session: Session, prompt: list[int], budget: int) -> Run:
    """A generation from an empty session, or a later turn of one; `session.stats` may count other ones too."""
    before = session.stats.total_s
    rounds = list(session.generate(prompt, budget))
    seconds = session.stats.total_s - before
    session.stats.check()
    tokens = tuple(token for emitted in rounds for token in emitted.tokens)
    whole, novel, at = [*prompt, *tokens], [], len(prompt) + len(rounds[0].tokens)
    for emitted in rounds[1:]:  # the first one has no draft
        coming = whole[at : at + NOVEL_TOKENS]
        if len(coming) == NOVEL_TOKENS and not _occurs(coming, whole[: at + NOVEL_TOKENS - 1]):
            novel.append(emitted.drafted)
        at += len(emitted.tokens)
    return Run(tokens, seconds, tuple(novel))


def _occurs(needle: list[int], hay: list[int]) -> bool:
    return any(hay[i : i + len(needle)] == needle for i in range(len(hay) - len(needle) + 1))
