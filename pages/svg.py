"""Charts as inline SVG: no script, no fonts of their own, every colour a class that the page's style sheet sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape
from raylign.pages.numbers import percent, short, step_ticks, tick_labels, ticks

WIDTH, HEIGHT = 340.0, 176.0
_TOP, _RIGHT, _BOTTOM = 10.0, 12.0, 36.0
_CHAR = 6.4  # width of a digit at the charts' font size, generously
_MOST_POINTS = 240
_MOST_BARS = 48
_HOVER_POINTS = 80

Point = tuple[int, float | None]


@dataclass(frozen=True, slots=True)
class Band:
    """A healthy range; None leaves that side open."""

    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure at a place of the axis, with its interval where that is known."""

    at: float
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class _Bucket:
    step: float
    low: float
    mean: float
    high: float


@dataclass(frozen=True, slots=True)
class _Frame:
    """Maps data to the plot area."""

    left: float
    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        span = self.last - self.first
        share = (step - self.first) / span if span else 0.5
        return self.left + share * (WIDTH - _RIGHT - self.left)

    def y(self, value: float) -> float:
        return _TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - _TOP - _BOTTOM)


def line_chart(points: Sequence[Point], *, label: str, band: Band | None) -> Markup:
    """One metric over steps. A value that was not finite breaks the line and is marked by a cross at the bottom."""
    finite = [(step, value) for step, value in points if value is not None]
    if not finite:
        return _svg(label, "no finite value", [])
    buckets = _buckets(finite)
    low, high = _range([b.low for b in buckets] + [b.high for b in buckets], band)
    y_ticks = ticks(low, high, 4)
    labels = tick_labels(y_ticks)
    left = 10.0 + _CHAR * max(len(text) for text in labels)
    frame = _Frame(left, points[0][0], points[-1][0], low, high)
    parts = [_band(frame, band) if band else "", _grid(frame, y_ticks, labels), _x_axis(frame)]
    if len(finite) > _MOST_POINTS:
        parts.append(_envelope(frame, buckets))
    parts += _lines(frame, points, buckets)
    described = f"from {short(finite[0][1])} at step {finite[0][0]} to {short(finite[-1][1])} at step {finite[-1][0]}"
    return _svg(label, described, parts)


def line_charts(series: Sequence[Sequence[Point]], *, label: str) -> Markup:
    """One metric of several runs, in classes `s1`, `s2`, ...; a run without points keeps its colour for the others."""
    finite = [[(step, value) for step, value in points if value is not None] for points in series]
    everything = [point for points in finite for point in points]
    if not everything:
        return _svg(label, "no finite value", [])
    buckets = [_buckets(points) for points in finite]
    low, high = _range([value for row in buckets for b in row for value in (b.low, b.high)], None)
    y_ticks = ticks(low, high, 4)
    labels = tick_labels(y_ticks)
    left = 10.0 + _CHAR * max(len(text) for text in labels)
    steps = [step for step, _ in everything]
    frame = _Frame(left, min(steps), max(steps), low, high)
    parts = [_grid(frame, y_ticks, labels), _x_axis(frame)]
    for i, (points, row) in enumerate(zip(series, buckets, strict=True)):
        if row:
            parts += [f'<g class="s{i + 1}">', *_lines(frame, points, row), "</g>"]
    ends = ", ".join(f"{i + 1}: {short(points[-1][1])}" for i, points in enumerate(finite) if points)
    return _svg(label, f"last values {ends}", parts)


def stacked_bars(
    steps: Sequence[int], names: Sequence[str], rows: Sequence[Sequence[float]], *, label: str, unit: str
) -> Markup:
    """`rows[i][j]` is the part of `names[j]` at `steps[i]`; parts are stacked, classes `fill1`, `fill2`, ..."""
    size = max(1, -(-len(steps) // _MOST_BARS))
    chunks = [slice(i, i + size) for i in range(0, len(steps), size)]
    means = [[sum(column) / len(column) for column in zip(*rows[c], strict=True)] for c in chunks]
    starts = [steps[c][0] for c in chunks]
    top = max(sum(row) for row in means) or 1.0
    y_ticks = ticks(0.0, top * 1.02, 4)
    labels = tick_labels(y_ticks)
    left = 10.0 + _CHAR * max(len(text) for text in labels)
    frame = _Frame(left, 0, len(means), 0.0, top * 1.02)
    parts: list[str] = [_grid(frame, y_ticks, labels)]
    for i, row in enumerate(means):
        base = 0.0
        for j, value in enumerate(row):
            x, y = frame.x(i), frame.y(base + value)
            width = (frame.x(i + 1) - x) * (0.82 if len(means) < 30 else 0.94)
            parts.append(
                f'<rect class="fill{j + 1}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
                f'height="{max(0.0, frame.y(base) - y):.1f}"><title>step {starts[i]}: {escape(names[j])} '
                f"{escape(short(value))} {escape(unit)}</title></rect>"
            )
            base += value
    shown = sorted({0, len(means) // 2, len(means) - 1})
    centres = [(frame.x(i + 0.45), str(starts[i])) for i in shown]
    parts.append(_x_labels(centres, frame.left))
    return _svg(label, f"{len(steps)} steps, {', '.join(names)}", parts)


def share_bar(share: float, low: float, high: float, *, label: str, middle: str = "no difference") -> Markup:
    """A share between 0 and 1 with its interval and the half-way mark, which is called `middle`."""

    def x(value: float) -> float:
        return 1 + value * (WIDTH - 2)

    parts = [
        '<rect class="track" x="1" y="14" width="338" height="12" rx="6"/>',
        f'<rect class="fill1" x="1" y="14" width="{max(0.0, x(share) - 1):.1f}" height="12" rx="6"/>',
        f'<line class="half" x1="{x(0.5):.1f}" y1="8" x2="{x(0.5):.1f}" y2="32"/>',
        f'<path class="whisker" d="M{x(low):.1f} 20H{x(high):.1f}M{x(low):.1f} 15V25M{x(high):.1f} 15V25"/>',
        f'<text class="tick" x="1" y="44">0</text><text class="tick" x="{x(0.5):.1f}" y="44" '
        f'text-anchor="middle">{escape(middle)}</text>',
        '<text class="tick" x="339" y="44" text-anchor="end">100\u00a0%</text>',
    ]
    described = f"{percent(share)}, 95 % interval {percent(low)} to {percent(high)}"
    return _svg(label, described, parts, height=50)


def reliability_chart(points: Sequence[Estimate], *, label: str) -> Markup:
    """What is said (`at`, a share from a half on) against what is so, with the line on which both are equal."""
    y_ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    labels = [percent(value) for value in y_ticks]
    frame = _Frame(10.0 + _CHAR * max(len(text) for text in labels), 0.47, 1.01, 0.0, 1.0)
    parts = [_grid(frame, y_ticks, labels)]
    parts.append(_x_labels([(frame.x(v), percent(v)) for v in (0.5, 0.75, 1.0)], frame.left, "says"))
    ends = frame.x(0.5), frame.y(0.5), frame.x(1.0), frame.y(1.0)
    parts.append('<line class="half" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'.format(*ends))
    for one in points:
        shown = f"says {percent(one.at)}: right in {percent(one.value)}"
        parts.append(_estimate(frame.x(one.at), frame, one, shown))
    far = max((abs(one.value - one.at) for one in points), default=0.0)
    return _svg(label, f"{len(points)} bins, at most {percent(far)} from the line", parts)


def doubling_chart(points: Sequence[Estimate], *, label: str, turn: int | None) -> Markup:
    """A figure over n = 1, 2, 4, ... (`at`), each the same way from the one before; `turn`: an n to be marked."""
    bounds = [v for one in points for v in (one.value, one.low, one.high) if v is not None]
    low, high = _range(bounds, None)
    y_ticks = ticks(low, high, 4)
    labels = tick_labels(y_ticks)
    frame = _Frame(10.0 + _CHAR * max(len(text) for text in labels), -0.15, len(points) - 0.85, low, high)
    places = [(frame.x(i), f"{one.at:g}") for i, one in enumerate(points)]
    parts = [_grid(frame, y_ticks, labels), _x_labels(places, frame.left, "best of n")]
    line = [f"{frame.x(i):.1f},{frame.y(one.value):.1f}" for i, one in enumerate(points)]
    parts.append(_polyline(line))
    for i, one in enumerate(points):
        if one.at == turn:
            x = frame.x(i)
            parts.append(f'<line class="half" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{HEIGHT - _BOTTOM}"/>')
        parts.append(_estimate(frame.x(i), frame, one, f"best of {one.at:g}: {short(one.value)}"))
    ends = (
        f"from {short(points[0].value)} at n = {points[0].at:g} to {short(points[-1].value)} at n = {points[-1].at:g}"
    )
    return _svg(label, ends, parts)


def _estimate(x: float, frame: _Frame, one: Estimate, shown: str) -> str:
    """A point with its interval, and what it says when it is pointed at."""
    y, interval = frame.y(one.value), ""
    if one.low is not None and one.high is not None:
        interval = f'<path class="whisker" d="M{x:.1f} {frame.y(one.low):.1f}V{frame.y(one.high):.1f}"/>'
    centre = f'cx="{x:.1f}" cy="{y:.1f}"'
    point = f'<circle class="end" {centre} r="3.5"/>'
    return f'{interval}{point}<circle class="hover" {centre} r="7"><title>{escape(shown)}</title></circle>'


def _svg(label: str, described: str, parts: Iterable[str], height: float = HEIGHT) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(label)}: {escape(described)}">'
        f"{''.join(parts)}</svg>"
    )


def _buckets(points: Sequence[tuple[int, float]]) -> list[_Bucket]:
    """Neighbouring points together when there are more than a line can show: mean, least and most of each."""
    size = max(1, -(-len(points) // _MOST_POINTS))
    result = []
    for i in range(0, len(points), size):
        values = [value for _, value in points[i : i + size]]
        middle = points[i : i + size][len(values) // 2][0]
        result.append(_Bucket(middle, min(values), sum(values) / len(values), max(values)))
    return result


def _range(values: Sequence[float], band: Band | None) -> tuple[float, float]:
    """The data with a margin, widened to a healthy bound only when that is near: far bounds would flatten the curve."""
    low, high = min(values), max(values)
    span = high - low or abs(high) * 0.2 or 1.0
    if band is not None:
        for bound in (band.low, band.high):
            if bound is not None and low - 0.6 * span <= bound <= high + 0.6 * span:
                low, high = min(low, bound), max(high, bound)
    margin = 0.07 * (high - low or span)
    return low - margin, high + margin


def _band(frame: _Frame, band: Band) -> str:
    top = frame.high if band.high is None else min(max(band.high, frame.low), frame.high)
    bottom = frame.low if band.low is None else max(min(band.low, frame.high), frame.low)
    if top <= bottom:
        return ""
    width = WIDTH - _RIGHT - frame.left
    height = frame.y(bottom) - frame.y(top)
    return f'<rect class="band" x="{frame.left:.1f}" y="{frame.y(top):.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _grid(frame: _Frame, values: Sequence[float], labels: Sequence[str]) -> str:
    parts = []
    for value, text in zip(values, labels, strict=True):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{frame.left:.1f}" y1="{y:.1f}" x2="{WIDTH - _RIGHT:.0f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{frame.left - 5:.1f}" y="{y + 3.8:.1f}" text-anchor="end">{escape(text)}</text>'
        )
    return "".join(parts)


def _x_axis(frame: _Frame) -> str:
    steps = step_ticks(int(frame.first), int(frame.last), 5)
    return _x_labels([(frame.x(step), f"{step:,}") for step in steps], frame.left)


def _x_labels(places: Sequence[tuple[float, str]], left: float, axis: str = "step") -> str:
    """Labels that would touch the one before are left out."""
    parts, free_from = [], 0.0
    y = HEIGHT - _BOTTOM
    for x, text in places:
        half = _CHAR * len(text) / 2
        centre = min(max(x, left + half - 4), WIDTH - half - 2)
        if centre - half >= free_from:
            parts.append(f'<text class="tick" x="{centre:.1f}" y="{y + 14:.1f}" text-anchor="middle">{text}</text>')
            free_from = centre + half + 8
    middle = (left + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle:.1f}" y="{HEIGHT - 5:.1f}" text-anchor="middle">{axis}</text>')
    return "".join(parts)


def _envelope(frame: _Frame, buckets: Sequence[_Bucket]) -> str:
    upper = " ".join(f"{frame.x(b.step):.1f},{frame.y(b.high):.1f}" for b in buckets)
    lower = " ".join(f"{frame.x(b.step):.1f},{frame.y(b.low):.1f}" for b in reversed(buckets))
    return f'<polygon class="envelope" points="{upper} {lower}"/>'


def _lines(frame: _Frame, points: Sequence[Point], buckets: Sequence[_Bucket]) -> list[str]:
    missing = [step for step, value in points if value is None]
    parts, run, gaps = [], list[str](), iter([*missing, float("inf")])
    gap = next(gaps)
    for bucket in buckets:
        if bucket.step > gap:
            parts.append(_polyline(run))
            run = []
            while bucket.step > gap:
                gap = next(gaps)
        run.append(f"{frame.x(bucket.step):.1f},{frame.y(bucket.mean):.1f}")
    parts.append(_polyline(run))
    for step in missing[:_MOST_POINTS]:
        x, y = frame.x(step), HEIGHT - _BOTTOM - 4
        parts.append(f'<path class="missing" d="M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6"/>')
    last = buckets[-1]
    parts.append(f'<circle class="end" cx="{frame.x(last.step):.1f}" cy="{frame.y(last.mean):.1f}" r="3"/>')
    if len(buckets) <= _HOVER_POINTS:
        parts += [
            f'<circle class="hover" cx="{frame.x(b.step):.1f}" cy="{frame.y(b.mean):.1f}" r="6">'
            f"<title>step {b.step:.0f}: {escape(short(b.mean))}</title></circle>"
            for b in buckets
        ]
    return parts


def _polyline(run: Sequence[str]) -> str:
    if len(run) == 1:
        x, y = run[0].split(",")
        return f'<circle class="end" cx="{x}" cy="{y}" r="2.5"/>'
    return f'<polyline class="line" points="{" ".join(run)}"/>' if run else ""
