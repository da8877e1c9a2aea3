"""The page of one traced event. What comes from a run or a log is escaped by the template."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape
from raylign.evals.trace_event import VERDICTS, AnswerTrace, EventTrace, RowTrace, TokenMove, headline
from raylign.pages.frame import render_page
from raylign.pages.numbers import short
from raylign.records.atomic import write_atomic

_TEMPLATE = Path(__file__).parent / "trace.html"
_STYLE = Path(__file__).parent / "trace.css"
_SHADES = 4
_LAYERS_SHOWN = 40
AGREES = 1e-3
"""A replay whose loss is further from the run's than this, relative, is remarked on."""
STRAYS = 0.1
"""A replay further away has trained another model: a loss near nothing, say, in a run in bfloat16."""


@dataclass(frozen=True, slots=True)
class ShadedToken:
    """A token with its class: `up1` to `up4` for a log-prob that rose, `down1` to `down4` for one that fell."""

    text: str
    shade: str
    moved: str


def write_trace(folder: Path, trace: EventTrace) -> Path:
    """Write the page into `folder` and return its path."""
    path = folder / f"{_slug(trace.event)}.html"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page(trace))
    return path


def page(trace: EventTrace) -> str:
    """The page's text."""
    values = {
        "trace": trace,
        "headline": headline(trace).replace("by -", "by \u2212"),
        "remarks": remarks(trace),
        "short": short,
        "signed": signed,
        "shaded": shaded,
        "layers": layer_bars,
        "sides": sides,
        "verdicts": VERDICTS,
    }
    return render_page(_TEMPLATE, values, styles=(_STYLE,))


def remarks(trace: EventTrace) -> list[str]:
    """What a reader must know before believing the figures."""
    found = []
    if trace.dropped:
        found.append(f"The build of the data dropped this event: {', '.join(trace.dropped)}.")
    if trace.other_rows:
        rows = "row" if trace.other_rows == 1 else "rows"
        found.append(
            f"The event also made {trace.other_rows} {rows} in other files of the build, which this run did not read."
        )
    if any(row.steps for row in trace.rows) and trace.loss_gap > AGREES:
        told = (
            "so figures of single steps are close to the run's, not equal"
            if trace.loss_gap <= STRAYS
            else "so single steps are those of another training of the same rows; start and end are the run's"
        )
        found.append(
            f"Training was repeated in one process to measure this; its loss differs from the run's by up to "
            f"{100 * trace.loss_gap:,.2g} % (step {trace.loss_gap_step}), {told}."
            if trace.loss_gap < 1
            else "Training was repeated in one process to measure this; at step "
            f"{trace.loss_gap_step} its loss is {1 + trace.loss_gap:.2g} times the run's, {told}."
        )
    return [*found, *trace.notes]


def signed(value: float | None) -> str:
    """`+0.12`, with a true minus sign; a dash for nothing."""
    text = short(value)
    return f"+{text}" if value is not None and value > 0 else text


def sides(row: RowTrace) -> list[tuple[str, AnswerTrace]]:
    """Each answer with what the person said of it."""
    if len(row.answers) == 2:
        return list(zip(("chosen", "rejected"), row.answers, strict=True))
    label = "learned" if row.desirable is None else VERDICTS[row.desirable]
    return [(label, answer) for answer in row.answers]


def shaded(tokens: Sequence[TokenMove], *, by_run: bool) -> list[ShadedToken]:
    """Tokens by how far their log-prob moved, the largest move of the answer at full shade."""
    moves = [token.by_run if by_run else token.by_step for token in tokens]
    largest = max((abs(move) for move in moves), default=0.0) or 1.0
    made = []
    for token, move in zip(tokens, moves, strict=True):
        level = round(_SHADES * abs(move) / largest)
        shade = f"{'up' if move > 0 else 'down'}{level}" if level else ""
        made.append(ShadedToken(token.text, shade, f"{signed(move)} nats"))
    return made


def layer_bars(layers: Sequence[tuple[str, float]]) -> Markup:
    """Gradient norm by layer as horizontal bars; long models are shown by their largest layers."""
    shown = list(layers)
    if len(shown) > _LAYERS_SHOWN:
        kept = set(sorted(range(len(shown)), key=lambda i: -shown[i][1])[:_LAYERS_SHOWN])
        shown = [one for i, one in enumerate(shown) if i in kept]
    largest = max((value for _, value in shown), default=0.0) or 1.0
    rows = [
        f'<text class="tick" x="0" y="{16 * i + 11}">{escape(name)}</text>'
        f'<rect class="fill1" x="110" y="{16 * i + 2}" width="{max(0.5, 170 * value / largest):.1f}" height="11"/>'
        f'<text class="tick" x="{114 + 170 * value / largest:.1f}" y="{16 * i + 11}">{escape(short(value))}</text>'
        for i, (name, value) in enumerate(shown)
    ]
    height = 16 * len(shown) + 2
    return Markup(
        f'<svg class="layers" viewBox="0 0 340 {height}" role="img" aria-label="gradient norm by layer">'
        f"{''.join(rows)}</svg>"
    )


def _slug(event: str) -> str:
    """A file's name for any event: readable, and different for different events."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", event).strip(".-")[:60]
    return (
        plain if plain == event else f"{plain or 'event'}-{hashlib.blake2b(event.encode(), digest_size=4).hexdigest()}"
    )
