"""Line charts as SVG files of their own, for what is read without a browser's script: an evaluation's folder, a repository."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 760, 250  # drawing units: CSS pixels at a desk
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 48, 14, 24, 30
HOVER_COLUMNS = 150  # more tooltips than this would lie closer together than a pointer can aim
COLOURS = 4  # that can be told apart, also by most who do not see all of them
SMALLEST_SPAN = 1e-12  # a curve flatter than this is a line at 0


@dataclass(frozen=True, slots=True)
class Series:
    """One curve. `whiskers` are (low, high) per point; `faint` draws a thin line, `dots` marks every point."""

    name: str
    points: list[tuple[float, float]]
    colour: int = 0
    whiskers: list[tuple[float, float]] = field(default_factory=list)
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """What is drawn. The y axis always shows 0; `top` fixes its upper end."""

    title: str
    unit: str
    series: list[Series]
    top: float | None = None
    x_name: str = "step"

    @property
    def empty(self) -> bool:
        return not any(series.points for series in self.series)


_STYLE = """
svg { --soft: #646b78; --grid: #ebe9e4; --c0: #1f6feb; --c1: #c2571a; --c2: #14805e; --c3: #8250df;
  background: #fff; font: 11px sans-serif; }
.grid { stroke: var(--grid); } .tick, .phase { fill: var(--soft); } .phase { font-weight: 600; } .hover { fill: transparent; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.dot, .name { fill: var(--c); }
.curve { fill: none; stroke-width: 2; } .curve, .whisker { stroke: var(--c); } .whisker { opacity: .5; }
.curve.faint { stroke-width: 1; opacity: .45; }
"""


def standalone(chart: Chart) -> str:
    """The chart as an SVG file of its own, with its title and the names of its curves; nothing where there is nothing to draw."""
    if chart.empty:
        return ""
    written = [f'<text class="phase" x="{MARGIN_LEFT}" y="12">{escape(f"{chart.title}, {chart.unit}")}</text>']
    if len(chart.series) > 1:  # one text, in which every name begins where the one before ends, however wide its letters are
        names = (f'<tspan class="name c{series.colour}" dx="12">{escape(series.name)}</tspan>' for series in chart.series)
        written.append(f'<text text-anchor="end" x="{WIDTH - MARGIN_RIGHT}" y="12">{"".join(names)}</text>')
    written.append(
        f'<text class="tick" text-anchor="end" x="{WIDTH - MARGIN_RIGHT}" y="{HEIGHT - 1}">{escape(chart.x_name)}</text>'
    )
    return f"{_opening(chart)}<style>{_STYLE}</style>{_drawn(chart)}{''.join(written)}</svg>\n"


def ticks(top: float, bottom: float = 0.0, wanted: int = 4) -> list[float]:
    """At most `wanted` + 2 round numbers, among them 0, that cover `bottom` ≤ 0 to `top` ≥ 0.

    Example:
        >>> ticks(0.93)
        [0.0, 0.25, 0.5, 0.75, 1.0]
        >>> ticks(3.2, -1.0)
        [-2.0, 0.0, 2.0, 4.0]
    """
    span = top - bottom
    if span < SMALLEST_SPAN:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if power * factor * wanted >= span)
    first, last = math.floor(bottom / step + 1e-9), math.ceil(top / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def readable(value: float) -> str:
    """A figure for an axis or a tooltip.

    Example:
        >>> [readable(value) for value in (0, 0.25, 12345, 0.00004)]
        ['0', '0.25', '12.3k', '4e-05']
    """
    if abs(value) >= 10_000:
        return f"{value / 1000:.3g}k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


@dataclass(frozen=True, slots=True)
class _Frame:
    """From figures to drawing units."""

    first: float
    last: float
    bottom: float
    top: float

    def x(self, value: float) -> float:
        span = max(self.last - self.first, 1e-9)
        return MARGIN_LEFT + (value - self.first) / span * (WIDTH - MARGIN_LEFT - MARGIN_RIGHT)

    def y(self, value: float) -> float:
        room = HEIGHT - MARGIN_TOP - MARGIN_BOTTOM
        return HEIGHT - MARGIN_BOTTOM - min(max((value - self.bottom) / (self.top - self.bottom), 0.0), 1.0) * room


def _opening(chart: Chart) -> str:
    xs = [x for series in chart.series for x, _ in series.points]
    label = f"{chart.title}, {chart.unit}, from {chart.x_name} {readable(min(xs))} to {readable(max(xs))}. {_spoken(chart)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{escape(label, quote=True)}">'
    )


def _drawn(chart: Chart) -> str:
    points = [point for series in chart.series for point in series.points]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    lowest = min(0.0, *[y for _, y in points])
    highest = max([0.0, *[y for _, y in points], *[high for series in chart.series for _, high in series.whiskers]])
    scale = ticks(chart.top if chart.top is not None else highest * 1.02, lowest)
    frame = _Frame(first, max(last, first + 1), scale[0], scale[-1])
    return "".join([_axes(scale, frame), *(_curve(series, frame) for series in chart.series), _tooltips(chart, frame)])


def _spoken(chart: Chart) -> str:
    parts = [
        f"{series.name}: from {readable(series.points[0][1])} to {readable(series.points[-1][1])}"
        for series in chart.series
        if series.points and not series.faint
    ]
    return "; ".join(parts)


def _axes(scale: list[float], frame: _Frame) -> str:
    drawn = []
    for value in scale:
        y = frame.y(value)
        drawn.append(f'<line class="grid" x1="{MARGIN_LEFT}" x2="{WIDTH - MARGIN_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(f'<text class="tick" text-anchor="end" x="{MARGIN_LEFT - 6}" y="{y + 4:.1f}">{readable(value)}</text>')
    step = max(ticks(max(frame.last - frame.first, 1), wanted=8)[1], 1)
    value = math.ceil(frame.first / step) * step
    while value <= frame.last:
        drawn.append(
            f'<text class="tick" text-anchor="middle" x="{frame.x(value):.1f}" y="{HEIGHT - 10}">{readable(value)}</text>'
        )
        value += step
    return "".join(drawn)


def _curve(series: Series, frame: _Frame) -> str:
    if not series.points:
        return ""
    drawn = [
        f'<line class="whisker c{series.colour}" x1="{frame.x(x):.1f}" x2="{frame.x(x):.1f}"'
        f' y1="{frame.y(low):.1f}" y2="{frame.y(high):.1f}"/>'
        for (x, _), (low, high) in zip(series.points, series.whiskers, strict=False)
    ]
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in series.points)
    drawn.append(f'<polyline class="curve c{series.colour}{" faint" if series.faint else ""}" points="{path}"/>')
    if series.dots or len(series.points) == 1:
        drawn += [
            f'<circle class="dot c{series.colour}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3"/>'
            for x, y in series.points
        ]
    return "".join(drawn)


def _tooltips(chart: Chart, frame: _Frame) -> str:
    """Invisible columns that carry the figures of their step as a native tooltip."""
    at: dict[float, list[str]] = {}
    for series in chart.series:
        for i, (x, y) in enumerate(series.points):
            whisker = series.whiskers[i] if i < len(series.whiskers) else None
            interval = f" ({readable(whisker[0])} to {readable(whisker[1])})" if whisker else ""
            at.setdefault(x, []).append(f"{series.name} {readable(y)}{interval}")
    steps = sorted(at)
    steps = steps[:: max(1, math.ceil(len(steps) / HOVER_COLUMNS))]
    centres = [frame.x(step) for step in steps]
    edges = [
        MARGIN_LEFT, *[(a + b) / 2 for a, b in pairwise(centres)], WIDTH - MARGIN_RIGHT,
    ]  # fmt: skip
    return "".join(
        f'<rect class="hover" x="{left:.1f}" y="{MARGIN_TOP}" width="{max(right - left, 0):.1f}"'
        f' height="{HEIGHT - MARGIN_TOP - MARGIN_BOTTOM}"><title>{escape(chart.x_name)} {readable(step)}:'
        f" {escape(', '.join(at[step]))}</title></rect>"
        for step, (left, right) in zip(steps, pairwise(edges), strict=True)
    )
