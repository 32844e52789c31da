"""All drafters of a bundle side by side: the part of a report that `bench --compare` fills."""

from __future__ import annotations

from markupsafe import Markup

from . import chart
from .chart import Line
from .pages import Figure, Section, Table
from .results import ALL, Point, Results


def drafters(found: Results) -> Section:
    """Speed and acceptance over the draft length, a line for each drafter, and each one's best length by domain."""
    over_plain, accepted = [], []
    for index, drafter in enumerate(found.drafters):
        points, dashed = [point for point in found.of(ALL, drafter) if point.ratio], index >= chart.COLOURS
        over_plain.append(Line(drafter, [(float(p.drafts), p.ratio.value) for p in points if p.ratio], dashed=dashed))
        accepted.append(Line(drafter, [(float(p.drafts), p.accepted_per_round) for p in points], dashed=dashed))
    figures = (
        Figure(
            "Speed",
            Markup(chart.lines(over_plain, "drafts a round", "drafted over plain", baseline=1.0)),
            "All prompts. A tree drafts as many nodes as a chain drafts tokens.",
        ),
        Figure("Acceptance", Markup(chart.lines(accepted, "drafts a round", "accepted a round")), "All prompts."),
    )
    text = "The same target and the same tokens, drafted in each way that the bundle holds graphs for."
    return Section("Drafters", text, figures=figures, tables=(drafters_table(found),))


def drafters_table(found: Results) -> Table:
    """Each drafter at the length that is best over all prompts: tokens/s and accepted drafts a round, by domain."""
    domains = [*found.domains, ALL]
    plain = {domain: found.of(domain)[0] for domain in domains}
    rows = [("off", "", *(f"{plain[domain].tokens_per_s:,.0f}" for domain in domains))]
    for drafter in found.drafters:
        best = max((p for p in found.of(ALL, drafter) if p.ratio), key=_ratio)
        own = [next(p for p in found.of(domain, drafter) if p.drafts == best.drafts) for domain in domains]
        rows.append((drafter, str(best.drafts), *(f"{p.tokens_per_s:,.0f} ({p.accepted_per_round:.2f})" for p in own)))
    return Table("Drafters", ("drafter", "drafts", *domains), tuple(rows), open=True)


def _ratio(point: Point) -> float:
    return point.ratio.value if point.ratio else 0.0
