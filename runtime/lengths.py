"""Decoding with each draft length, in turn on each prompt: what is compared ran side by side and met the same noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from .batch import Batch, Request, Row, row_bytes
from .clock import now
from .draft_length import Confident, Drafts, Scheduled
from .drafters import default_rule
from .manifest import Manifest
from .prompts import Prompt
from .sampler import Sampler
from .sampling import Sampling
from .schedule import Schedule
from .session import Session, open_session
from .stats import Stats
from .target import Target
from .text import Tokenizer
from .timing import Generation, TimedEngine, Timings, time_prefills

Progress = Callable[[str, int, int], None]
WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Way:
    """A drafter and how long it drafts: a number, by measured times ("auto"), or as the bundle was tuned."""

    drafter: str
    drafts: int | Literal["auto", "tuned"]

    @property
    def name(self) -> str:
        return "off" if self == PLAIN else f"{self.drafter} {self.drafts}"

    def policy(self, schedule: Schedule | None) -> Drafts:
        if isinstance(self.drafts, int):
            return self.drafts
        return Scheduled(schedule) if self.drafts == "tuned" and schedule else Confident()


PLAIN = Way("none", 0)


@dataclass
class Runs:
    """Of one way on one domain: by prompt, tokens and seconds of the rounds; counts over all of them."""

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)

    @property
    def speeds(self) -> list[float]:
        """Tokens/s by prompt."""
        return [tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds, strict=True)]


@dataclass
class Measured:
    """All runs. `identical`: every way gave plain decoding's tokens, None where a way may draw others."""

    runs: dict[str, dict[Way, Runs]] = field(default_factory=dict)
    timings: Timings = field(default_factory=Timings)
    first_token_s: list[float] = field(default_factory=list)
    identical: bool | None = True


def ways_of(
    manifest: Manifest, lengths: Sequence[int] | None = None, drafters: Sequence[str] | None = None
) -> list[Way]:
    """Plain decoding, and each length that a graph is wide enough for, or those asked for, of the bundle's drafter or
    of those named."""
    drafters = drafters or (manifest.drafters.default,)
    widest = max(graph.width for graph in manifest.graphs_of("verify")) - 1
    asked = range(1, widest + 1) if lengths is None else [n for n in lengths if 0 < n <= widest]
    return [PLAIN, *(Way(drafter, drafts) for drafter in drafters for drafts in asked)]


def samplers(ways: Sequence[Way], sampling: Sampling) -> dict[Way, Sampler]:
    """By each drafter's own rule."""
    return {way: Sampler(sampling, default_rule(way.drafter, timed=way.drafts == "auto")) for way in ways}


def measure(
    engine: TimedEngine,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    ways: Sequence[Way],
    budget: int,
    sampling: Sampling,
    progress: Progress,
    schedule: Schedule | None = None,
) -> Measured:
    """The ways take turns on each prompt, after a short text of each to warm up.

    Their order is drawn anew for each prompt: always after the same other one, a way would find its graphs in the
    caches, or not. Domains take turns too: a machine that gets slower meanwhile is no slower for one of them.
    """
    targets, found = {way: Target(engine) for way in ways}, Measured()  # as in an app, which has one way
    rules = samplers(ways, sampling)
    if sampling.temperature > 0 and any(rules[way].rejects for way in ways):
        found.identical = None
    for way in ways:
        session = open_session(engine, way.drafter, way.policy(schedule), targets[way], rules[way])
        list(session.generate(tokenizer.encode(prompts[0].text), WARM_UP_TOKENS))
    random = np.random.default_rng(0)
    found.timings.prefills = time_prefills(Target(engine), engine, random)
    for number, prompt in enumerate(_mixed(prompts)):
        progress("Each draft length in turn", number, len(prompts))
        tokens, texts = tokenizer.encode(prompt.text), {}
        domain = found.runs.setdefault(prompt.domain, {way: Runs() for way in ways})
        for place in random.permutation(len(ways)):
            way = ways[place]
            sampler = rules[way].sample(number)
            session = open_session(engine, way.drafter, way.policy(schedule), targets[way], sampler)
            texts[way] = _run(session, tokens, budget, way, domain[way], found)
        if found.identical and any(text != texts[ways[0]] for text in texts.values()):
            found.identical = False
    return found


def _mixed(prompts: Sequence[Prompt]) -> list[Prompt]:
    """One of each domain, then the next of each."""
    order = Counter[str]()
    ranked = []
    for prompt in prompts:
        ranked.append((order[prompt.domain], prompt))
        order[prompt.domain] += 1
    return [prompt for _, prompt in sorted(ranked, key=lambda one: one[0])]


def _run(session: Session, prompt: list[int], budget: int, way: Way, into: Runs, found: Measured) -> list[int]:
    engine = session.target.engine
    assert isinstance(engine, TimedEngine)
    started = now()
    session.begin(prompt, budget)
    engine.take()
    own = session.stats
    session.round()
    first_s = now() - started
    while session.context.finish is None:
        session.round()
    seconds, calls = own.total_s, engine.take()
    if isinstance(way.drafts, int):
        one = Generation(own.rounds, own.drafted_rounds, own.proposed, seconds, calls)
        found.timings.texts.setdefault((way.drafter, way.drafts), []).append(one)
    own.check()
    into.tokens.append(own.emitted)
    into.seconds.append(seconds)
    into.stats.add(own)
    if way == PLAIN:
        found.first_token_s.append(first_s)
    return session.context.tokens[len(prompt) :]


def measure_batch(
    target: Target,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    ways: Sequence[Way],
    rows: int,
    budget: int,
    sampling: Sampling,
) -> dict[Way, Runs]:
    """So many prompts at a time, rows in turn: each group is one entry, with the tokens and seconds of all its rows."""
    found = {way: Runs() for way in ways}
    rules = samplers(ways, sampling)
    for start in range(0, len(prompts) - rows + 1, rows):
        group = prompts[start : start + rows]
        for way in ways:
            batch = Batch(target, rows * row_bytes(target.engine.manifest))
            members: list[Row] = [
                batch.join(
                    Request(tokenizer.encode(prompt.text), budget, rules[way].sample(n), way.drafter, way.policy(None))
                )
                for n, prompt in enumerate(group)
            ]
            for _ in batch.run():
                pass
            runs = found[way]
            runs.tokens.append(sum(row.session.stats.emitted for row in members))
            runs.seconds.append(sum(row.session.stats.total_s for row in members))
            for row in members:
                runs.stats.add(row.session.stats)
    return found
