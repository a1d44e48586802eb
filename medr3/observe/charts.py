"""Line charts as inline SVG: no script, no request, colours from the page's style sheet, a table of the same figures for ears.

Each chart is drawn twice, for a desk and for a phone, because a scaled-down chart has unreadable labels; the style sheet
shows one of the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

WIDE, NARROW = (760, 250), (360, 230)  # drawing units: CSS pixels at a desk, and on a small phone
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 48, 14, 24, 30
HOVER_COLUMNS = 150  # more tooltips than this would lie closer together than a pointer can aim
SMALLEST_SPAN = 1e-12  # a curve flatter than this is a line at 0
PIXELS_PER_CHARACTER = 6.2  # of the 11-pixel labels


@dataclass(frozen=True, slots=True)
class Band:
    """A stretch of steps with a name: a phase."""

    start: float
    end: float
    label: str


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
class Mark:
    """A vertical line at a step, with a number that the text beside the chart explains."""

    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """What is drawn. The y axis always shows 0; `top` fixes its upper end."""

    title: str
    unit: str
    series: list[Series]
    bands: list[Band] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    top: float | None = None
    x_name: str = "step"

    @property
    def empty(self) -> bool:
        return not any(series.points for series in self.series)


def figure(chart: Chart) -> str:
    """The chart with its caption and legend, as HTML; nothing where there is nothing to draw."""
    if chart.empty:
        return ""
    caption = (
        f'<figcaption><b>{escape(chart.title)}</b> <span class="unit">{escape(chart.unit)}</span>{_legend(chart)}</figcaption>'
    )
    return f"<figure>{caption}{_svg(chart, WIDE, 'wide')}{_svg(chart, NARROW, 'narrow')}</figure>"


# What the page's style sheet says of charts, for one that stands alone.
_STYLE = """
svg { --soft: #646b78; --grid: #ebe9e4; --c0: #1f6feb; --c1: #c2571a; --c2: #14805e; background: #fff; font: 11px sans-serif; }
.grid { stroke: var(--grid); } .tick, .phase { fill: var(--soft); } .phase { font-weight: 600; } .hover { fill: transparent; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .dot, .name { fill: var(--c); }
.curve { fill: none; stroke-width: 2; } .curve, .whisker { stroke: var(--c); } .whisker { opacity: .5; }
.curve.faint { stroke-width: 1; opacity: .45; }
"""


def standalone(chart: Chart) -> str:
    """The chart as an SVG file of its own, with its title and the names of its curves; nothing where there is nothing to draw."""
    if chart.empty:
        return ""
    width, height = WIDE
    written = [f'<text class="phase" x="{MARGIN_LEFT}" y="12">{escape(f"{chart.title}, {chart.unit}")}</text>']
    right = width - MARGIN_RIGHT
    for series in reversed(chart.series if len(chart.series) > 1 else []):
        written.append(f'<text class="name c{series.colour}" text-anchor="end" x="{right}" y="12">{escape(series.name)}</text>')
        right -= round(PIXELS_PER_CHARACTER * len(series.name)) + 12
    written.append(
        f'<text class="tick" text-anchor="end" x="{width - MARGIN_RIGHT}" y="{height - 1}">{escape(chart.x_name)}</text>'
    )
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
    drawn = _svg(chart, WIDE, "wide").replace("<svg ", opening, 1)
    return drawn.replace(">", f"><style>{_STYLE}</style>", 1).removesuffix("</svg>") + "".join(written) + "</svg>\n"


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


def _legend(chart: Chart) -> str:
    if len(chart.series) < 2:
        return ""
    items = "".join(
        f'<li class="c{series.colour}{" faint" if series.faint else ""}">{escape(series.name)}</li>' for series in chart.series
    )
    return f'<ul class="legend">{items}</ul>'


@dataclass(frozen=True, slots=True)
class _Frame:
    """From figures to drawing units."""

    width: int
    height: int
    first: float
    last: float
    bottom: float
    top: float

    def x(self, value: float) -> float:
        span = max(self.last - self.first, 1e-9)
        return MARGIN_LEFT + (value - self.first) / span * (self.width - MARGIN_LEFT - MARGIN_RIGHT)

    def y(self, value: float) -> float:
        room = self.height - MARGIN_TOP - MARGIN_BOTTOM
        return self.height - MARGIN_BOTTOM - min(max((value - self.bottom) / (self.top - self.bottom), 0.0), 1.0) * room


def _svg(chart: Chart, size: tuple[int, int], kind: str) -> str:
    points = [point for series in chart.series for point in series.points]
    xs = [x for x, _ in points] + [edge for band in chart.bands for edge in (band.start, band.end)]
    lowest = min(0.0, *[y for _, y in points])
    highest = max([0.0, *[y for _, y in points], *[high for series in chart.series for _, high in series.whiskers]])
    first = min(xs)
    scale = ticks(chart.top if chart.top is not None else highest * 1.02, lowest)
    frame = _Frame(*size, first, max(*xs, first + 1), scale[0], scale[-1])
    label = f"{chart.title}, {chart.unit}, from {chart.x_name} {readable(first)} to {readable(max(xs))}. {_spoken(chart)}"
    body = [_bands(chart, frame), _axes(scale, frame), _marks(chart, frame)]
    body += [_curve(series, frame) for series in chart.series]
    body.append(_tooltips(chart, frame))
    return (
        f'<svg class="{kind}" viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(label, quote=True)}">'
        f"{''.join(body)}</svg>"
    )


def _spoken(chart: Chart) -> str:
    parts = [
        f"{series.name}: from {readable(series.points[0][1])} to {readable(series.points[-1][1])}"
        for series in chart.series
        if series.points and not series.faint
    ]
    return "; ".join(parts)


def _bands(chart: Chart, frame: _Frame) -> str:
    drawn = []
    for i, band in enumerate(chart.bands):
        left, right = frame.x(band.start), frame.x(band.end)
        bottom = frame.height - MARGIN_BOTTOM
        drawn.append(
            f'<rect class="band b{i % 3}" x="{left:.1f}" y="{MARGIN_TOP - 18}" width="{max(right - left, 0):.1f}"'
            f' height="{bottom - MARGIN_TOP + 18}"/>'
        )
        room = int((right - left - 6) / PIXELS_PER_CHARACTER)
        shown = band.label if len(band.label) <= room else band.label[: max(room - 1, 0)] + "…"
        if room >= 3:
            drawn.append(f'<text class="phase" x="{left + 5:.1f}" y="{MARGIN_TOP - 6}">{escape(shown)}</text>')
    return "".join(drawn)


def _axes(scale: list[float], frame: _Frame) -> str:
    drawn = []
    for value in scale:
        y = frame.y(value)
        drawn.append(f'<line class="grid" x1="{MARGIN_LEFT}" x2="{frame.width - MARGIN_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(f'<text class="tick" text-anchor="end" x="{MARGIN_LEFT - 6}" y="{y + 4:.1f}">{readable(value)}</text>')
    wanted = 8 if frame.width == WIDE[0] else 4
    step = max(ticks(max(frame.last - frame.first, 1), wanted=wanted)[1], 1)
    value = math.ceil(frame.first / step) * step
    while value <= frame.last:
        drawn.append(
            f'<text class="tick" text-anchor="middle" x="{frame.x(value):.1f}" y="{frame.height - 10}">{readable(value)}</text>'
        )
        value += step
    return "".join(drawn)


def _marks(chart: Chart, frame: _Frame) -> str:
    drawn = []
    for mark in chart.marks:
        x, bottom = frame.x(mark.x), frame.height - MARGIN_BOTTOM
        drawn.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{MARGIN_TOP}" y2="{bottom}"/>')
        drawn.append(f'<circle class="badge" cx="{x:.1f}" cy="{bottom - 10}" r="8"/>')
        drawn.append(f'<text class="badge" text-anchor="middle" x="{x:.1f}" y="{bottom - 6}">{escape(mark.label)}</text>')
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
        MARGIN_LEFT, *[(a + b) / 2 for a, b in pairwise(centres)], frame.width - MARGIN_RIGHT,
    ]  # fmt: skip
    return "".join(
        f'<rect class="hover" x="{left:.1f}" y="{MARGIN_TOP}" width="{max(right - left, 0):.1f}"'
        f' height="{frame.height - MARGIN_TOP - MARGIN_BOTTOM}"><title>{escape(chart.x_name)} {readable(step)}:'
        f" {escape(', '.join(at[step]))}</title></rect>"
        for step, (left, right) in zip(steps, pairwise(edges), strict=True)
    )
