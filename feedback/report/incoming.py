"""What came in: events by kind, source, persona and week. From events alone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl
from markupsafe import Markup
from raylign.feedback.events import EventKind
from raylign.feedback.report.charts import Scale, bar, columns
from raylign.feedback.trust.coverage import UNKNOWN
from raylign.feedback.trust.judgements import rater
from raylign.pages.numbers import percent

KIND_WORDS = {
    EventKind.SIDE_BY_SIDE.value: "side-by-side choices",
    EventKind.THUMB.value: "thumbs",
    EventKind.RATING.value: "ratings",
    EventKind.CORRECTION.value: "corrections",
}
_MOST_ROWS = 12
_MOST_WEEKS = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a list of bars."""

    name: str
    value: str
    chart: Markup
    note: str = ""


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Events by the values of one column."""

    heading: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Incoming:
    """The section's contents. `timeline` is None where no event has a time."""

    events: int
    people: int
    conversations: int
    period: str
    breakdowns: tuple[Breakdown, ...]
    alike: str  # what all events have in common, as a sentence; empty where nothing is
    timeline: Markup | None
    timeline_unit: str
    kinds: tuple[str, ...]  # legend of the timeline


def incoming(events: pl.DataFrame) -> Incoming:
    """Count `events` (EVENT_SCHEMA)."""
    kinds = [kind for kind in KIND_WORDS if (events["kind"] == kind).any()]
    chart, unit = _timeline(events, kinds)
    found = [_breakdown(events, heading, column) for heading, column in _HEADINGS]
    return Incoming(
        events=events.height,
        people=events.select(rater().drop_nulls().n_unique()).item(),
        conversations=events["conversation_id"].drop_nulls().n_unique(),
        period=_period(events),
        breakdowns=tuple(b for b in found if len(b.rows) > 1),
        alike=_alike([b for b in found if len(b.rows) == 1]),
        timeline=chart,
        timeline_unit=unit,
        kinds=tuple(KIND_WORDS[kind] for kind in kinds),
    )


_HEADINGS = (
    ("By kind", "kind"),
    ("By source", "source"),
    ("By kind of user", "persona"),
    ("By place in the product", "surface"),
)


def _alike(single: list[Breakdown]) -> str:
    """One bar of 100 % says less than a sentence."""
    constant = [f"{b.heading.removeprefix('By ')}: {b.rows[0].name}" for b in single]
    return f"The same for all \u2013 {'; '.join(constant)}." if constant else ""


def _breakdown(events: pl.DataFrame, heading: str, column: str) -> Breakdown:
    if not events.height or events[column].null_count() == events.height:
        return Breakdown(heading, ())
    counts = (
        events.group_by(pl.col(column).fill_null(UNKNOWN)).len().sort("len", column, descending=[True, False]).rows()
    )
    rest = sum(n for _, n in counts[_MOST_ROWS:])
    shown = counts[:_MOST_ROWS] + ([(f"{len(counts) - _MOST_ROWS:,} others", rest)] if rest else [])
    scale = Scale(0.0, max(n for _, n in shown))
    rows = [
        Row(
            KIND_WORDS.get(name, name),
            f"{n:,} · {percent(n / events.height)}",
            bar(n, scale, label=f"{name}: {n:,} events"),
        )
        for name, n in shown
    ]
    return Breakdown(heading, tuple(rows))


def _period(events: pl.DataFrame) -> str:
    first, last = events["time"].min(), events["time"].max()
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        return "times not logged"
    return f"{first:%d %B %Y} to {last:%d %B %Y}"


def _timeline(events: pl.DataFrame, kinds: list[str]) -> tuple[Markup | None, str]:
    """By week, or by day or month where weeks would be too few or too many."""
    times = events["time"].drop_nulls()
    if not len(times):
        return None, ""
    span = times.max() - times.min()  # type: ignore[operator]
    assert isinstance(span, timedelta)
    every, unit, form = "1w", "week", "%d %b"
    if span < timedelta(days=15):
        every, unit = "1d", "day"
    elif span > timedelta(weeks=_MOST_WEEKS):
        every, unit, form = "1mo", "month", "%b %y"
    counts = (
        events.lazy()
        .filter(pl.col("time").is_not_null())
        .group_by(pl.col("time").dt.truncate(every))
        .agg((pl.col("kind") == kind).sum().cast(pl.Int64).alias(kind) for kind in kinds)
        .sort("time")
        .collect()
        .upsample("time", every=every)
        .with_columns(pl.col(kinds).fill_null(0))
    )
    names = [f"{moment:{form}}" for moment in counts["time"]]
    words = [KIND_WORDS[kind] for kind in kinds]
    return columns(names, words, counts.select(kinds).rows(), label=f"Events by {unit}"), unit
