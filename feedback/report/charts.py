"""Bars and columns as inline SVG; every colour is a class of the style sheet.

Bars stretch with the page (no aspect ratio, lines that keep their width), so their words stay in HTML and wrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape
from raylign.pages.numbers import percent, tick_labels, ticks

_WIDTH, _HEIGHT = 100.0, 18.0  # of a bar, in its own units
_COLUMNS_WIDTH, _COLUMNS_HEIGHT = 340.0, 170.0
_TOP, _BOTTOM, _RIGHT = 8.0, 22.0, 6.0
_CHAR = 6.4


@dataclass(frozen=True, slots=True)
class Scale:
    """What the ends of a bar stand for, and a mark on the way (one half, say)."""

    low: float
    high: float
    mark: float | None = None

    def x(self, value: float) -> float:
        """Where a value lies, kept inside the bar."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0
        return _WIDTH * min(1.0, max(0.0, share))


SHARES = Scale(0.0, 1.0, 0.5)


def bar(value: float, scale: Scale, *, label: str, fill: int = 1) -> Markup:
    """A bar from the left end to `value`."""
    rect = f'<rect class="fill{fill}" x="0" y="3" width="{scale.x(value):.2f}" height="12"/>'
    return _bar_svg(label, _track() + rect + _mark(scale))


def lost_bar(before: float, after: float, scale: Scale, *, label: str) -> Markup:
    """A bar up to `after`, and what was lost since `before` behind it."""
    kept, all_ = scale.x(after), scale.x(before)
    lost = max(all_ - kept, 0.4 if before > after else 0.0)  # a single row stays visible
    parts = (
        f'<rect class="fill1" x="0" y="3" width="{max(0.0, all_ - lost):.2f}" height="12"/>'
        f'<rect class="gone" x="{max(0.0, all_ - lost):.2f}" y="3" width="{lost:.2f}" height="12"/>'
    )
    return _bar_svg(label, _track() + parts)


def interval(low: float, value: float, high: float, scale: Scale, *, label: str, warning: bool = False) -> Markup:
    """A point with its interval on a track: what is known is the interval, so that is what is drawn wide."""
    left, right = scale.x(low), max(scale.x(high), scale.x(low) + 0.6)
    kind = "spread warn" if warning else "spread"
    parts = (
        f'<rect class="{kind}" x="{left:.2f}" y="4" width="{right - left:.2f}" height="10"/>'
        f'<line class="point" x1="{scale.x(value):.2f}" x2="{scale.x(value):.2f}" y1="1" y2="17"/>'
    )
    return _bar_svg(label, _track() + _mark(scale) + parts)


def _track() -> str:
    return f'<rect class="track" x="0" y="8" width="{_WIDTH:.0f}" height="2"/>'


def _mark(scale: Scale) -> str:
    if scale.mark is None:
        return ""
    x = f"{scale.x(scale.mark):.2f}"
    return f'<line class="target" x1="{x}" x2="{x}" y1="0" y2="{_HEIGHT:.0f}"/>'


def _bar_svg(label: str, inside: str) -> Markup:
    return Markup(
        f'<svg class="stretch" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{inside}</svg>'
    )


def columns(names: Sequence[str], parts: Sequence[str], rows: Sequence[Sequence[int]], *, label: str) -> Markup:
    """Stacked columns: `rows[i][j]` is the part `parts[j]` of the column `names[i]`."""
    top = 1.04 * max((sum(row) for row in rows), default=1) or 1.0
    marks = ticks(0.0, top, 4)
    texts = tick_labels(marks)
    left = 8.0 + _CHAR * max(len(text) for text in texts)
    floor = _COLUMNS_HEIGHT - _BOTTOM
    step = (_COLUMNS_WIDTH - _RIGHT - left) / max(1, len(names))

    def y(value: float) -> float:
        return floor - value / top * (floor - _TOP)

    drawn = []
    for mark, text in zip(marks, texts, strict=True):
        drawn.append(
            f'<line class="grid" x1="{left:.1f}" x2="{_COLUMNS_WIDTH:.0f}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>'
        )
        drawn.append(f'<text class="tick" x="{left - 5:.1f}" y="{y(mark) + 3.8:.1f}" text-anchor="end">{text}</text>')
    free = 0.0
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        x, base = left + i * step, 0
        for j, count in enumerate(row):
            if count:
                drawn.append(
                    f'<rect class="fill{j + 1}" x="{x + 0.1 * step:.1f}" y="{y(base + count):.1f}" '
                    f'width="{0.8 * step:.1f}" height="{y(base) - y(base + count):.1f}">'
                    f"<title>{escape(name)}: {count:,} {escape(parts[j])}</title></rect>"
                )
            base += count
        centre, half = x + step / 2, _CHAR * len(name) / 2
        if centre - half >= free and centre + half <= _COLUMNS_WIDTH + 8:
            drawn.append(
                f'<text class="tick" x="{centre:.1f}" y="{floor + 15:.1f}" text-anchor="middle">{escape(name)}</text>'
            )
            free = centre + half + 8
    return Markup(
        f'<svg viewBox="0 0 {_COLUMNS_WIDTH:.0f} {_COLUMNS_HEIGHT:.0f}" role="img" aria-label="{escape(label)}">'
        f"{''.join(drawn)}</svg>"
    )


def share_words(low: float, value: float, high: float) -> str:
    """`54 % (50 to 58)`."""
    ends = [percent(x).replace("\u00a0%", "") for x in (low, high)]
    return f"{percent(value)} ({ends[0]} to {ends[1]})"
