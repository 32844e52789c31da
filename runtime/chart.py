"""Charts as SVG that a page can hold: no fonts, scripts or colours of their own, so that light, dark and print work.

Colours are the page's CSS classes: `c0` to `c5` by series, `axis`, `grid`, `label`. Every mark has a `<title>`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640.0, 330.0
LEFT, RIGHT, TOP, BOTTOM = 72.0, 16.0, 14.0, 46.0
COLOURS = 6


@dataclass(frozen=True)
class Line:
    """`points` in order of x; `band` has a low and a high for each, or nothing; `hollow` points are not joined."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()
    hollow: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float
    log: bool

    def at(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            powers = range(math.floor(math.log2(self.low)), math.ceil(math.log2(self.high)) + 1)
            step = max(1, len(powers) // 7)
            return [2.0**p for p in powers[::step] if self.low * 0.999 <= 2.0**p <= self.high * 1.001]
        step = 10 ** math.floor(math.log10((self.high - self.low) or 1))
        step = next(step * m for m in (0.1, 0.2, 0.5, 1, 2, 5) if (self.high - self.low) / (step * m) <= 7)
        return [n * step for n in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def lines(
    series: Sequence[Line],
    x_label: str,
    y_label: str,
    baseline: float | None = None,
    log: bool = False,
    y_format: Callable[[float], str] = "{:g}".format,
) -> str:
    """A legend stands below the chart. `baseline` is a level to compare with."""
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for y in (*(y for _, y in line.points), *(v for pair in line.band for v in pair))]
    ys += [] if baseline is None else [baseline]
    x = _Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, log)
    y = _Axis(min(ys) * 0.9 if log else 0.0, max(ys) * 1.06, HEIGHT - BOTTOM, TOP, log)
    parts = _frame(x, y, x_label, y_label, y_format)
    if baseline is not None:
        parts.append(f'<path class="baseline" d="M{LEFT} {y.at(baseline):.1f}H{WIDTH - RIGHT}"/>')
    for number, line in enumerate(series):
        colour = f"c{number % COLOURS}"
        places = [(x.at(a), y.at(b)) for a, b in line.points]
        if line.band:
            upper = [f"{p[0]:.1f} {y.at(high):.1f}" for p, (_, high) in zip(places, line.band, strict=True)]
            lower = [f"{p[0]:.1f} {y.at(low):.1f}" for p, (low, _) in zip(places, line.band, strict=True)]
            parts.append(f'<path class="band {colour}" d="M{"L".join(upper + lower[::-1])}Z"/>')
        if not line.hollow:
            path = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
            parts.append(f'<path class="line {colour}{" dashed" if line.dashed else ""}" d="M{path}"/>')
        for (a, b), (at, value) in zip(places, line.points, strict=True):
            title = f"<title>{escape(line.name)}, {x_label} {at:g}: {y_format(value)}</title>"
            kind = "hollow" if line.hollow else "dot"
            parts.append(f'<circle class="{kind} {colour}" cx="{a:.1f}" cy="{b:.1f}" r="3.4">{title}</circle>')
    return _svg(parts, HEIGHT, f"{y_label} by {x_label}") + legend({line.name: line.dashed for line in series})


def stacked(bars: Sequence[tuple[str, Mapping[str, float]]], x_label: str, y_label: str) -> str:
    """One bar each, made of the same parts in the same order."""
    names = list(bars[0][1])
    top = max(sum(parts.values()) for _, parts in bars) * 1.06
    x, y = _Axis(0, len(bars), LEFT, WIDTH - RIGHT, False), _Axis(0.0, top, HEIGHT - BOTTOM, TOP, False)
    found = _frame(x, y, x_label, y_label, "{:g}".format, ticks=False)
    width = (x.at(1) - x.at(0)) * 0.7
    for place, (name, parts) in enumerate(bars):
        below, left = 0.0, x.at(place + 0.15)
        for number, part in enumerate(names):
            start, below = below, below + parts[part]
            height = y.at(start) - y.at(below)
            title = f"<title>{escape(name)}, {escape(part)}: {parts[part]:.3g}</title>"
            found.append(
                f'<rect class="bar c{number}" x="{left:.1f}" y="{y.at(below):.1f}" width="{width:.1f}" '
                f'height="{height:.1f}">{title}</rect>'
            )
        found.append(_text(left + width / 2, HEIGHT - BOTTOM + 16, name, "middle"))
    return _svg(found, HEIGHT, f"{y_label} by {x_label}") + legend(dict.fromkeys(names, False))


def heat(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], label: str) -> str:
    """Shares from 0 to 1 as shades, with the percentage written in each cell."""
    margin, tall = 92.0, 30.0
    height = 26 + tall * len(rows) + 30
    wide = (WIDTH - margin - RIGHT) / max(1, len(columns))
    parts = [_text(margin + (n + 0.5) * wide, 18, name, "middle") for n, name in enumerate(columns)]
    for row, (name, shares) in enumerate(zip(rows, values, strict=True)):
        top = 26 + row * tall
        parts.append(_text(margin - 8, top + tall / 2 + 4, name, "end"))
        for column, share in enumerate(shares):
            if share is None:
                continue
            left = margin + column * wide
            title = f"<title>{escape(name)}, draft {escape(columns[column])}: {share:.1%}</title>"
            parts.append(
                f'<rect class="heat" x="{left + 1:.1f}" y="{top + 1:.1f}" width="{wide - 2:.1f}" '
                f'height="{tall - 2:.1f}" style="--share:{share:.3f}">{title}</rect>'
            )
            shade = "on-dark" if share > 0.55 else "on-light"
            parts.append(_text(left + wide / 2, top + tall / 2 + 4, f"{100 * share:.0f}", "middle", shade))
    parts.append(_text(margin + (WIDTH - margin - RIGHT) / 2, height - 8, label, "middle"))
    return _svg(parts, height, label)


def legend(names: Mapping[str, bool]) -> str:
    """By name, whether its line is dashed."""
    items = (
        f'<span><i class="c{number % COLOURS}{" dashed" if dashed else ""}"></i>{escape(name)}</span>'
        for number, (name, dashed) in enumerate(names.items())
    )
    return f'<p class="legend">{"".join(items)}</p>'


def _frame(
    x: _Axis, y: _Axis, x_label: str, y_label: str, y_format: Callable[[float], str], ticks: bool = True
) -> list[str]:
    parts = []
    for value in y.ticks():
        at = y.at(value)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 8, at + 4, y_format(round(value, 10)), "end"))
    if ticks:
        parts += [_text(x.at(value), HEIGHT - BOTTOM + 16, f"{value:g}", "middle") for value in x.ticks()]
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "middle", "title"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="label title" text-anchor="middle" transform="translate(14 {middle:.0f}) rotate(-90)">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text class="label {kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], height: float, label: str) -> str:
    body = "".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(label, quote=True)}">{body}</svg>'
    )


def short(value: float) -> str:
    """1,500,000 as 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
