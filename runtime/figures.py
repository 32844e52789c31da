"""From runs to figures: medians over prompts, intervals by resampling them, predictions beside measurements."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from .cost import RoundCost, Times
from .draft_length import Confident, Fixed, Scheduled
from .experience import Experience
from .lengths import PLAIN, Measured, Runs, Way
from .manifest import Manifest
from .results import ALL, Interval, Point, Prediction, Read, Results
from .schedule import Schedule
from .survey import Surveyed, play

RESAMPLES = 2_000
CONFIDENCE = (0.025, 0.975)


def points(runs: Mapping[str, Mapping[Way, Runs]], batch: int = 1) -> list[Point]:
    """One for each domain and way, and those of all prompts together."""
    found: list[Point] = []
    for domain, by_way in {**runs, ALL: together(runs)}.items():
        plain = by_way[PLAIN]
        for way, one in by_way.items():
            stats = one.stats
            found.append(
                Point(
                    domain=domain,
                    drafter=way.drafter,
                    drafts=way.drafts,
                    batch=batch,
                    tokens_per_s=statistics.median(one.speeds),
                    ratio=None if way == PLAIN else ratio(plain.speeds, one.speeds),
                    accepted_per_round=stats.accepted_per_round,
                    acceptance=tuple(stats.acceptance_by_position()),
                    conditional_acceptance=tuple(stats.conditional_acceptance_by_position()),
                    rounds=stats.rounds,
                    tokens=stats.emitted,
                    seconds=stats.seconds,
                )
            )
    return found


def together(runs: Mapping[str, Mapping[Way, Runs]]) -> dict[Way, Runs]:
    """Of all domains."""
    found: dict[Way, Runs] = {}
    for by_way in runs.values():
        for way, one in by_way.items():
            whole = found.setdefault(way, Runs())
            whole.tokens += one.tokens
            whole.seconds += one.seconds
            whole.stats.add(one.stats)
    return found


def ratio(plain: Sequence[float], drafted: Sequence[float]) -> Interval:
    """Median over prompts of drafted over plain speed; both lists are by prompt."""
    ratios = np.array(drafted) / np.array(plain)
    picks = np.random.default_rng(0).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), CONFIDENCE)
    return Interval(value=float(np.median(ratios)), low=float(low), high=float(high))


def predict(texts: Sequence[Surveyed], way: Way, cost: RoundCost, schedule: Schedule | None = None) -> list[float]:
    """Tokens/s by text. Each is a session of its own; those that learn tell the next."""
    speeds, experience = [], Experience(Times([]))
    for text in texts:
        if isinstance(way.drafts, int):
            played = play([text], Fixed(way.drafts), cost)
        else:
            learning = Confident(cost=cost).starting_from(experience)
            learning.begin(text.prompt)
            policy = Scheduled(schedule) if way.drafts == "tuned" and schedule else learning
            played = play([text], policy, cost, policy)
        speeds.append(played.tokens_per_s)
    return speeds


def predictions(
    measured: Measured,
    texts: Mapping[str, Mapping[str, Sequence[Surveyed]]],
    costs: Mapping[str, RoundCost],
    fitted: Collection[int],
    schedule: Schedule | None = None,
) -> list[Prediction]:
    """Of the ways that were measured with a surveyed drafter, and of plain decoding; `texts` by drafter and domain, in
    the order of their runs."""
    whole = {**measured.runs, ALL: together(measured.runs)}
    any_drafter = next(iter(texts))
    found = []
    for domain, by_way in whole.items():
        for way, one in by_way.items():
            drafter = any_drafter if way == PLAIN else way.drafter
            if drafter not in texts:
                continue
            own = texts[drafter]
            surveyed = [text for name in measured.runs if domain in (name, ALL) for text in own[name]]
            speeds = predict(surveyed, way, costs[drafter], schedule)
            errors = [guess / speed - 1 for guess, speed in zip(speeds, one.speeds, strict=True)]
            found.append(
                Prediction(
                    domain=domain,
                    drafter=way.drafter,
                    drafts=way.drafts,
                    held_out=way.drafts not in fitted,
                    predicted=statistics.median(speeds),
                    measured=statistics.median(one.speeds),
                    error=statistics.median(errors),
                )
            )
    return found


def median_error(found: Sequence[Prediction], drafter: str | None = None) -> float:
    """Of the held-out draft lengths by domain, without sign; of one drafter, or of all."""
    held_out = [one for one in found if one.held_out and one.domain != ALL and isinstance(one.drafts, int)]
    errors = [abs(one.error) for one in held_out if drafter in (None, one.drafter)]
    return statistics.median(errors) if errors else float("nan")


def summary(found: Results) -> dict[str, float | str | bool | None]:
    """The few figures that one looks at first."""
    speeds = [point for drafter in found.drafters or ["none"] for point in found.of(ALL, drafter)]
    best = max(speeds, key=lambda point: point.tokens_per_s)
    error = median_error(found.predictions)
    return {
        "bundle": found.bundle,
        "plain_tokens_per_s": round(speeds[0].tokens_per_s, 1),
        "best_drafter": best.drafter,
        "best_drafts": best.drafts,
        "best_tokens_per_s": round(best.tokens_per_s, 1),
        "identical": found.identical,
        "prediction_error": None if error != error else round(error, 4),
    }


def read_limit(manifest: Manifest, bandwidth: float, filled: int) -> Read:
    """`filled` positions' K/V is read for each token."""
    target, drafter = manifest.parts["target"], manifest.part_of(manifest.drafters.default)
    kv = manifest.kv_bytes_of(filled)
    return Read(
        target_bytes=target.size,
        drafter_bytes=drafter.size if drafter else 0,
        kv_bytes=kv,
        bandwidth=bandwidth,
        limit_tokens_per_s=bandwidth / (target.size + kv),
        whole_program=target == drafter,
    )
