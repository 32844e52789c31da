"""What a report says of results: one section for each question that a team asks before it ships."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from . import chart
from .chart import Line
from .drafter_section import drafters
from .figures import median_error
from .others import imported, reported
from .pages import Figure, Report, Section, Table
from .profile import Profile
from .results import ALL, Imports, Point, Precisions, Results
from .stats import RoundPart

PARTS: tuple[RoundPart, ...] = ("draft", "verify", "sampling", "host")


def report(
    results: Sequence[Results],
    imports: Sequence[Imports],
    profiles: Sequence[Profile],
    precisions: Sequence[Precisions] = (),
) -> Report:
    """Of any number of bundles; what others measured or reported stands at the end, in a table of its own."""
    sections: list[Section] = []
    for found in results:
        lengths = drafters(found) if len(found.drafters) > 1 else _lengths(found)
        sections += [_summary(found), lengths, _acceptance(found), _time(found)]
        if found.predictions:
            sections.append(_predictions(found))
    if results:
        sections.append(_bundles(results))
    sections += [_precisions(found) for found in precisions]
    if imports:
        rows = [row for one in imports for row in one.rows]
        sections.append(Section("Other programs", "As they measured themselves.", tables=(imported(rows),)))
    if profiles:
        sections.append(reported(profiles))
    title = "Speculative decoding: " + (", ".join(dict.fromkeys(_name(found) for found in results)) or "figures")
    first = results[0] if results else None
    subtitle = ""
    if first:
        counted = "by processor time" if first.clock == "cpu" else "by the wall's clock"
        subtitle = f"{first.date}, {first.device.soc or first.device.name}, {_threads(first)}, {counted}"
    raw = [one.model_dump(mode="json") for one in (*results, *precisions, *imports, *profiles)]
    return Report(title, subtitle, sections, raw)


def _name(found: Results) -> str:
    made = f"{found.backend}, {found.recipe}"
    return made if found.bundle == found.backend else f"{found.bundle} ({made})"


def _threads(found: Results) -> str:
    return (
        "threads as the backend likes" if found.threads == 0 else f"{found.threads} thread" + "s" * (found.threads > 1)
    )


def _summary(found: Results) -> Section:
    plain, best = found.of(ALL)[0], found.best
    pays = best.ratio is not None and best.ratio.value > 1
    tiles = [
        ("plain decoding", f"{plain.tokens_per_s:,.0f} tokens/s", "median over prompts"),
        (
            "best draft length",
            f"{best.drafts}" if pays else "off",
            f"{best.ratio.value:.2f}x ({best.ratio.low:.2f} to {best.ratio.high:.2f}) with {best.drafter}"
            if best.ratio
            else "",
        ),
        ("accepted per round", f"{best.accepted_per_round:.2f}", f"of {best.drafts}"),
        ("same tokens", {True: "yes", False: "NO", None: "drawn anew"}[found.identical], "drafted as plain"),
    ]
    if found.first_token:
        first = found.first_token
        note = f"warm; cold {first.cold_s * 1e3:,.0f} ms, {first.opened_s * 1e3:,.0f} of them opening"
        tiles.append(("first token", f"{first.warm_s * 1e3:.1f} ms", note))
    if found.peak_memory_bytes:
        tiles.append(("peak memory", f"{found.peak_memory_bytes / 1e6:,.0f} MB", "the whole process"))
    prompts = ", ".join(f"{count} {domain}" for domain, count in found.prompts.items())
    how = "greedy" if found.temperature == 0 else f"temperature {found.temperature:g}"
    text = f"{prompts}; {found.max_tokens} tokens each, {how}. " + (
        "Texts: " + "; ".join(found.licences) + "." if found.licences else ""
    )
    return Section(_name(found), text, tiles=tuple(tiles))


def _lengths(found: Results) -> Section:
    domains = [ALL, *found.domains]
    figures = [
        Figure(
            "One sequence",
            _ratios([(domain, found.of(domain)) for domain in domains], band=ALL, predicted=found),
            "Drafted over plain speed. The shade is the 95 % interval over all prompts; rings are predictions.",
        )
    ]
    rows = sorted({point.batch for point in found.points})
    if len(rows) > 1:
        svg = _ratios([(f"{n} row" + "s" * (n > 1), found.of(ALL, batch=n)) for n in rows], band=None, predicted=None)
        figures.append(
            Figure("Several sequences in turn", svg, "All rows' tokens over all their time, drafted over plain.")
        )
    table = Table(
        f"Speed by draft length, {found.bundle}",
        ("drafts", "rows", "domain", "tokens/s", "ratio", "low", "high", "accepted", "rounds"),
        tuple(_row(point) for point in found.points),
    )
    text = "A draft length pays where its line lies above 1."
    return Section("Draft length", text, figures=tuple(figures), tables=(table,))


def _ratios(by_name: Sequence[tuple[str, Sequence[Point]]], band: str | None, predicted: Results | None) -> Markup:
    series = []
    for name, points in by_name:
        drafted = [point for point in points if point.ratio]
        if not drafted:
            continue
        places = [(0.0, 1.0), *((float(point.drafts), point.ratio.value) for point in drafted if point.ratio)]
        edges = [(1.0, 1.0), *((point.ratio.low, point.ratio.high) for point in drafted if point.ratio)]
        series.append(Line(name, places, edges if name == band else ()))
    if predicted:
        plain = {one.domain: one.measured for one in predicted.predictions if one.drafts == 0}
        rings = [
            (float(one.drafts), one.predicted / plain[ALL])
            for one in predicted.predictions
            if one.domain == ALL and isinstance(one.drafts, int) and one.drafts > 0
        ]
        if rings:
            series.append(Line("predicted, all", rings, hollow=True))
    return Markup(chart.lines(series, "drafts a round", "drafted over plain", baseline=1.0))


def _row(point: Point) -> tuple[str, ...]:
    ratio = ("", "", "")
    if point.ratio:
        ratio = (f"{point.ratio.value:.3f}", f"{point.ratio.low:.3f}", f"{point.ratio.high:.3f}")
    drafts = "off" if point.drafter == "none" else str(point.drafts)
    shown = (drafts, str(point.batch), point.domain, f"{point.tokens_per_s:,.1f}")
    return (*shown, *ratio, f"{point.accepted_per_round:.2f}", str(point.rounds))


def _acceptance(found: Results) -> Section:
    domains = [*found.domains, ALL]
    longest = {domain: found.of(domain, found.best.drafter)[-1] for domain in domains}
    width = max(len(point.acceptance) for point in longest.values())
    columns = [str(k + 1) for k in range(width)]
    maps = {
        "if all before it were": [p.conditional_acceptance for p in longest.values()],
        "and all before it": [p.acceptance for p in longest.values()],
    }
    if not width:
        return Section("Acceptance", "Nothing was drafted.")
    figures = tuple(
        Figure(
            f"Draft k accepted {name}",
            Markup(chart.heat(domains, columns, [_padded(row, width) for row in rows], "draft k of a round, per cent")),
        )
        for name, rows in maps.items()
    )
    tables = tuple(
        Table(
            f"Acceptance by position, {name}",
            ("domain", *columns),
            tuple(
                (d, *("" if v is None else f"{v:.3f}" for v in _padded(row, width)))
                for d, row in zip(domains, rows, strict=True)
            ),
        )
        for name, rows in maps.items()
    )
    rounds = f"Of rounds in which {longest[ALL].drafter} drafted {longest[ALL].drafts}."
    text = f"{rounds} Where the chance falls, longer drafts soon stop paying."
    return Section("Acceptance", text, figures=figures, tables=tables)


def _padded(row: Sequence[float], width: int) -> list[float | None]:
    return [*row, *[None] * (width - len(row))]


def _time(found: Results) -> Section:
    bars: list[tuple[str, dict[str, float]]] = []
    for point in found.of(ALL, found.best.drafter):
        if point.tokens:
            name = "off" if point.drafter == "none" else str(point.drafts)
            bars.append((name, {part: 1e6 * point.seconds.get(part, 0.0) / point.tokens for part in PARTS}))
    figures = [
        Figure("Where a token's time goes", Markup(chart.stacked(bars, "drafts a round", "microseconds a token")))
    ]
    text = ""
    if found.read and found.profile:
        figures.append(_roofline(found))
        read = found.read
        most = "at most " if read.whole_program else ""
        text = (
            f"Plain decoding reads {most}{(read.target_bytes + read.kv_bytes) / 1e6:,.2f} MB a token; memory gives "
            f"{read.bandwidth / 1e9:,.1f} GB/s here, so no more than {read.limit_tokens_per_s:,.0f} tokens/s, unless "
            "caches hold the weights."
        )
    rows = tuple((name, *(f"{parts[part]:.1f}" for part in PARTS)) for name, parts in bars)
    return Section(
        "Time", text, figures=tuple(figures), tables=(Table("Microseconds a token", ("drafts", *PARTS), rows),)
    )


def _roofline(found: Results) -> Figure:
    """Tokens that a graph takes at once are what arithmetic intensity is for a model: weights are read once for all."""
    assert found.read
    assert found.profile
    graphs = sorted(
        (g.width, g.width / g.median_s) for g in found.profile.graphs if g.role in ("decode", "verify", "prefill")
    )
    widths = [width for width, _ in graphs]
    roof = [(float(width), width * found.read.limit_tokens_per_s) for width in (min(widths), max(widths))]
    series = [Line("graphs", [(float(w), speed) for w, speed in graphs]), Line("memory allows", roof, dashed=True)]
    svg = chart.lines(series, "tokens in one call", "tokens/s", log=True, y_format=chart.short)
    return Figure(
        "Roofline", Markup(svg), "A graph below the line is bound by arithmetic or its caller, not by memory."
    )


def _predictions(found: Results) -> Section:
    rows = tuple(
        (
            f"{one.drafter} {one.drafts}" if one.drafts else "off",
            one.domain,
            "held out" if one.held_out else "fitted",
            f"{one.predicted:,.0f}",
            f"{one.measured:,.0f}",
            f"{one.error:+.1%}",
        )
        for one in found.predictions
    )
    table = Table("Predicted and measured tokens/s", ("drafts", "domain", "", "predicted", "measured", "error"), rows)
    text = f"Median error on what was not used to fit: {median_error(found.predictions):.1%}."
    return Section("Predictions", text, tables=(table,))


def _precisions(found: Precisions) -> Section:
    rows = tuple(
        (
            one.recipe,
            f"{one.drafter_bytes / 1e6:.2f}",
            one.drafts,
            f"{one.tokens_per_round:.2f}",
            f"{one.tokens_per_s:,.0f}",
            f"{one.gain:.2f}",
        )
        for one in found.recipes
    )
    columns = ("drafter", "MB", "best", "tokens a round", "tokens/s", "over plain")
    text = (
        f"The same target of {found.bundle} ({found.backend}), and so the same output, with its drafter in several "
        f"recipes. By tokens/s {found.best} is best; a recipe with less error that is slower is not."
    )
    return Section("Drafter precision", text, tables=(Table("Drafter precision", columns, rows, open=True),))


def _bundles(results: Sequence[Results]) -> Section:
    rows = []
    for found in results:
        plain, drafted = found.of(ALL)[0], found.best
        best = max(plain, drafted, key=lambda point: point.tokens_per_s)
        parity = found.parity
        kl = (
            (f"{parity.max_error:.1e}", f"{parity.argmax_agreement:.1%}", f"{parity.kl:.1e}")
            if parity
            else ("", "", "")
        )
        rows.append(
            (
                _name(found),
                f"{found.bundle_bytes / 1e6:.1f}",
                *kl,
                {True: "yes", False: "NO", None: "-"}[found.identical],
                f"{drafted.accepted_per_round:.2f} of {drafted.drafts}, {drafted.drafter}",
                f"{plain.tokens_per_s:,.0f}",
                f"{best.tokens_per_s:,.0f}",
                "off" if best.drafter == "none" else str(best.drafts),
            )
        )
    columns = (
        "bundle",
        "MB",
        "max error",
        "argmax agrees",
        "KL, nats",
        "same tokens",
        "accepted",
        "plain/s",
        "best/s",
        "drafts",
    )
    text = "Graphs against transformers on the same inputs: the largest error of any output, and the target's logits."
    return Section("Parity and bundles side by side", text, tables=(Table("Bundles", columns, tuple(rows), open=True),))
