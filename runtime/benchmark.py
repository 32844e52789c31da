"""One bundle measured with every draft length: what `bench --out` writes, `profile` takes and `tune` starts from."""

from __future__ import annotations

import datetime
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import clock, host
from .compare import against_reference, stretches
from .cost import round_costs
from .draft_length import schedule_of
from .drafters import default_rule, runnable, stoppable, surveyable
from .engine import open_engine
from .errors import PocketdraftError
from .figures import points, predictions, read_limit
from .lengths import PLAIN, Measured, Progress, Runs, Way, measure, measure_batch, ways_of
from .manifest import Manifest
from .profile import Profile, Speed
from .prompts import Prompt
from .results import ALL, FirstToken, Parity, Point, Results
from .sampler import GREEDY, Sampler
from .sampling import Sampling
from .session import open_session
from .survey import Surveyed, survey
from .target import Target
from .text import Tokenizer
from .timing import TimedEngine
from .validate import Rungs


@dataclass(frozen=True)
class Task:
    """What to measure. `lengths` None is all that the bundle has graphs for; `batches` are numbers of rows.

    `drafters` None is the one that the bundle starts with, empty all that it can draft with; see `weighed` too.
    """

    prompts: Sequence[Prompt]
    max_tokens: int
    threads: int
    lengths: Sequence[int] | None = None
    sampling: Sampling = GREEDY.sampling
    batches: Sequence[int] = ()
    check: bool = False
    drafters: Sequence[str] | None = None


@dataclass
class Opened:
    """A bundle in use, and what opening it and the very first token took."""

    engine: TimedEngine
    tokenizer: Tokenizer
    opened_s: float
    cold_s: float

    @property
    def manifest(self) -> Manifest:
        return self.engine.manifest


def open_cold(bundle: Path, threads: int, prompt: Prompt) -> Opened:
    host.forget_peak()
    started = time.perf_counter()
    engine = TimedEngine(open_engine(bundle, threads))
    tokenizer = Tokenizer(bundle / "tokenizer.json", engine.manifest.tokens.bos)
    opened_s = time.perf_counter() - started
    session = open_session(engine, "none", 0)
    session.begin(tokenizer.encode(prompt.text), 1)
    session.round()
    return Opened(engine, tokenizer, opened_s, time.perf_counter() - started)


def fitted_lengths(manifest: Manifest) -> list[int]:
    """One for each graph, the longest draft that it takes, and a single draft: the others are held out."""
    return sorted({0, 1, *(graph.width - 1 for graph in manifest.graphs_of("verify"))})


def weighed(task: Task, manifest: Manifest) -> Sequence[str]:
    """The drafters that a profile times and `tune` chooses among: those named, or all that can be surveyed."""
    return task.drafters or surveyable(manifest.drafters)


def take_profile(bundle: Path, task: Task, advance: Progress) -> Profile:
    """Of this machine, with nothing but what a profile takes."""
    opened = open_cold(bundle, task.threads, task.prompts[0])
    profile = measured_profile(opened, task, advance)
    opened.engine.close()
    return profile


def measured_profile(opened: Opened, task: Task, advance: Progress) -> Profile:
    """Of this machine: one draft length for each graph, of all drafters that can be surveyed or those named."""
    lengths = fitted_lengths(opened.manifest)
    ways = ways_of(opened.manifest, lengths, weighed(task, opened.manifest))
    found = measure(opened.engine, opened.tokenizer, task.prompts, ways, task.max_tokens, task.sampling, advance)
    return profile_of(found, points(found.runs), opened.manifest, task, lengths, host.memory_bandwidth(task.threads))


def benchmark(
    bundle: Path, task: Task, advance: Progress, rungs_of: Callable[[Manifest], Rungs | None] | None = None
) -> Results:
    """Raises PocketdraftError for lengths that no graph is wide enough for, and for more rows than prompts."""
    most = max(Counter(prompt.domain for prompt in task.prompts).values())
    if max(task.batches, default=1) > most:
        raise PocketdraftError(
            f"--batch asks for {max(task.batches)} rows, no domain has more than {most} prompts; raise --per-domain."
        )
    opened = open_cold(bundle, task.threads, task.prompts[0])
    manifest = opened.manifest
    widest = manifest.graphs_of("verify")[-1].width - 1
    drafters = _drafters(task, manifest)
    checked = _checked(task, manifest, drafters)
    for length in task.lengths or ():
        if length > widest:
            raise PocketdraftError(
                f"--lengths asks for {length} drafts, the widest verify graph of {bundle} takes {widest}; "
                f"export with --drafts {length}, or give up to {widest}."
            )
    tuned, table = manifest.tuned, None
    ways = ways_of(manifest, task.lengths, drafters)
    if len(drafters) == 1 and stoppable(drafters[0]):
        ways.append(Way(drafters[0], "auto"))
        if tuned and tuned.drafter == drafters[0] and (table := schedule_of(tuned)):
            ways.append(Way(drafters[0], "tuned"))
    found = measure(opened.engine, opened.tokenizer, task.prompts, ways, task.max_tokens, task.sampling, advance, table)
    fitted = [length for length in fitted_lengths(manifest) if length in found.timings.lengths]
    whole = len(fitted) == len(fitted_lengths(manifest))
    many, bandwidth = points(found.runs), host.memory_bandwidth(task.threads)
    profile = profile_of(found, many, manifest, task, fitted, bandwidth) if whole else None
    for rows in task.batches:
        if rows > 1:
            advance(f"{rows} rows", 0, 1)
            many += points(_batch(opened, task, ways_of(manifest, task.lengths, drafters), rows), rows)
    predicted = []
    if checked and profile:
        costs = round_costs(profile, checked)
        texts = {drafter: survey_all(opened, task, drafter, widest, advance) for drafter in costs}
        predicted = predictions(found, texts, costs, fitted, table)
    filled = int(statistics.median(len(opened.tokenizer.encode(prompt.text)) for prompt in task.prompts))
    results = Results(
        date=datetime.date.today().isoformat(),
        bundle=bundle.resolve().name,
        bundle_bytes=manifest.size,
        backend=manifest.backend,
        recipe=manifest.recipe_name,
        device=host.describe(),
        threads=task.threads,
        clock=clock.chosen(),
        temperature=task.sampling.temperature,
        max_tokens=task.max_tokens,
        prompts={domain: sum(p.domain == domain for p in task.prompts) for domain in found.runs},
        licences=tuple(sorted({f"{p.source}: {p.licence}" for p in task.prompts if p.licence})),
        identical=found.identical,
        points=tuple(many),
        first_token=FirstToken(
            cold_s=opened.cold_s, opened_s=opened.opened_s, warm_s=statistics.median(found.first_token_s)
        ),
        peak_memory_bytes=host.peak_memory(),
        read=read_limit(manifest, bandwidth, filled + task.max_tokens // 2),
        predictions=tuple(predicted),
        parity=_parity(opened, task, rungs_of) if rungs_of else None,
        profile=profile,
    )
    opened.engine.close()
    return results


def _drafters(task: Task, manifest: Manifest) -> Sequence[str]:
    if task.drafters is None:
        return (manifest.drafters.default,)
    return task.drafters or runnable(manifest.drafters)


def _checked(task: Task, manifest: Manifest, drafters: Sequence[str]) -> list[str]:
    """Those whose speeds are to be predicted. Raises PocketdraftError where none of them can be."""
    if not task.check:
        return []
    known = surveyable(manifest.drafters)
    for drafter in drafters:
        _same_text(task, drafter)
    found = [drafter for drafter in drafters if drafter in known]
    if not found:
        raise PocketdraftError(
            f"--check cannot predict {', '.join(drafters)}, whose drafts depend on the rounds before; give --drafter "
            f"one of {', '.join(known)}."
        )
    return found


def survey_all(opened: Opened, task: Task, drafter: str, longest: int, advance: Progress) -> dict[str, list[Surveyed]]:
    """Every place of every prompt's text, by domain. Raises PocketdraftError where the text depends on drafts."""
    sampler = _same_text(task, drafter)
    target, found = Target(opened.engine.engine), {prompt.domain: list[Surveyed]() for prompt in task.prompts}
    for number, prompt in enumerate(task.prompts):
        advance(f"Surveying what {drafter} would draft", number, len(task.prompts))
        tokens = opened.tokenizer.encode(prompt.text)
        found[prompt.domain].append(survey(target, drafter, longest, tokens, task.max_tokens, sampler))
    return found


def _same_text(task: Task, drafter: str) -> Sampler:
    """The drafter's own, if its text is the same whatever is drafted. Raises PocketdraftError."""
    sampler = Sampler(task.sampling, default_rule(drafter, timed=False))
    if sampler.rejects:
        raise PocketdraftError(
            "--check is given at a temperature, where rejection makes the text depend on the drafts; give one of them."
        )
    return sampler


def _parity(opened: Opened, task: Task, rungs_of: Callable[[Manifest], Rungs | None]) -> Parity | None:
    """The graphs against transformers, where it is at hand."""
    rungs = rungs_of(opened.manifest)
    if rungs is None:
        return None
    found = against_reference(opened.engine, next(rungs)[1], stretches(opened.tokenizer, task.prompts))
    return Parity(max_error=found.max_error, argmax_agreement=found.argmax_agreement, kl=found.kl)


def profile_of(
    found: Measured, figures: Sequence[Point], manifest: Manifest, task: Task, lengths: Sequence[int], bandwidth: float
) -> Profile:
    """`figures` are those of all the runs found, `bandwidth` is this machine's in bytes/s."""
    speeds = [
        Speed(
            model=manifest.source.target.name,
            drafter=point.drafter,
            drafts=point.drafts,
            temperature=task.sampling.temperature,
            tokens_per_s=point.tokens_per_s,
            ratio=point.ratio.value if point.ratio else 1.0,
            acceptance_by_position=point.acceptance,
        )
        for point in figures
        if point.domain == ALL and isinstance(point.drafts, int) and point.drafts in lengths
    ]
    return found.timings.profile(manifest, task.threads, lengths, bandwidth, speeds)


def _batch(opened: Opened, task: Task, ways: Sequence[Way], rows: int) -> dict[str, dict[Way, Runs]]:
    """By domain; those with fewer prompts than rows are left out."""
    target, found = Target(opened.engine.engine), {}
    few = [PLAIN, *(way for way in ways if way.drafts in fitted_lengths(opened.manifest) and way != PLAIN)]
    for domain in dict.fromkeys(prompt.domain for prompt in task.prompts):
        own = [prompt for prompt in task.prompts if prompt.domain == domain]
        if len(own) >= rows:
            found[domain] = measure_batch(target, opened.tokenizer, own, few, rows, task.max_tokens, task.sampling)
    return found
