"""Draws what a run's fleet did: workers, queue, tokens a second and the learner's time, step by step.

python benchmarks/fleet_plot.py RUN_FOLDER OUT.svg
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from raylign.records.metrics_log import read_history

WIDTH, HEIGHT, LEFT, TOP = 720, 110, 64, 22
PANELS = (
    ("rollout workers (thin: wanted)", ("rollout/workers", "rollout/wanted")),
    ("reward replicas", ("reward/replicas",)),
    ("queue: finished steps that wait for the learner", ("rollout/steps_ready",)),
    ("sampled tokens a second", ("rollout/tokens_per_s",)),
    ("learner: seconds of the policy update", ("time/policy_update",)),
)
Series = Sequence[tuple[int, float]]


def draw(metrics: Path) -> str:
    """All panels as one SVG document."""
    rows = read_history(metrics).rows
    parts = []
    for number, (title, names) in enumerate(PANELS):
        lines = [[(row.step, row.values[name]) for row in rows if name in row.values] for name in names]
        parts.append(f'<g transform="translate(0 {number * HEIGHT})">{_panel(title, lines)}</g>')
    height = HEIGHT * len(PANELS) + 20
    parts.append(f'<text x="{LEFT}" y="{height - 6}">steps {rows[0].step} to {rows[-1].step}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{height}" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _panel(title: str, lines: Sequence[Series]) -> str:
    points = [point for line in lines for point in line]
    if not points:
        return f'<text x="{LEFT}" y="{TOP - 6}">{title}: not measured</text>'
    first, last = min(step for step, _ in points), max(step for step, _ in points)
    top = max(value for _, value in points) or 1.0
    label = f"{top:,.0f}" if top >= 100 else f"{top:.3g}"
    bottom = HEIGHT - 16

    def place(step: int, value: float) -> str:
        x = LEFT + (step - first) / max(1, last - first) * (WIDTH - LEFT - 12)
        return f"{x:.1f},{bottom - value / top * (bottom - TOP):.1f}"

    drawn = "".join(
        f'<polyline fill="none" stroke="{colour}" stroke-width="{width}" points="{" ".join(place(*p) for p in line)}"/>'
        for line, (colour, width) in zip(lines, (("#1f5fa8", 2), ("#b8860b", 1)), strict=False)
    )
    return (
        f'<text x="{LEFT}" y="{TOP - 6}">{title}</text><text x="{LEFT - 8}" y="{TOP + 4}" text-anchor="end">{label}'
        f'</text><text x="{LEFT - 8}" y="{bottom + 4}" text-anchor="end">0</text>'
        f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - 12}" fill="none" stroke="#999"/>{drawn}'
    )


if __name__ == "__main__":
    run, out = map(Path, sys.argv[1:])
    out.write_text(draw(run / "metrics.jsonl"))
