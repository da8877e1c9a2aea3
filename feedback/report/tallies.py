"""Plain counts by model: who won against whom, and thumbs over time. From events alone; no estimate."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl
from raylign.feedback.events import Choice, EventKind
from raylign.pages.numbers import percent

_MOST_MODELS = 8
_MOST_PERIODS = 8


@dataclass(frozen=True, slots=True)
class Tally:
    """A table: `head` names the columns after the first, a line is a model and a cell for each of them."""

    head: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...]], ...]
    note: str


def win_matrix(events: pl.DataFrame) -> Tally | None:
    """How often the model of the line was chosen over the model of the column, of how many; None without any.

    Ties count in neither; two answers of one model are no comparison of models.
    """
    decided = events.filter(
        pl.col("kind") == EventKind.SIDE_BY_SIDE.value,
        pl.col("choice").is_in([Choice.A.value, Choice.B.value]),
        pl.col("model_a") != pl.col("model_b"),
    )
    a_won = pl.col("choice") == Choice.A.value
    won = decided.select(
        winner=pl.when(a_won).then("model_a").otherwise("model_b"),
        loser=pl.when(a_won).then("model_b").otherwise("model_a"),
    )
    counts = {(winner, loser): n for winner, loser, n in won.group_by("winner", "loser").len().iter_rows()}
    asked: dict[str, int] = {}
    for pair, n in counts.items():
        for model in pair:
            asked[model] = asked.get(model, 0) + n
    models = sorted(asked, key=lambda model: (-asked[model], model))[:_MOST_MODELS]
    if not models:
        return None
    lines = tuple((model, tuple(_won(counts, model, other) for other in models)) for model in models)
    left = len(asked) - len(models)
    note = "Choices of the line's answer over the column's, of all that named a winner between the two."
    return Tally(tuple(models), lines, note + (f" {left:,} models with fewer are not shown." if left else ""))


def _won(counts: dict[tuple[str, str], int], model: str, other: str) -> str:
    won, lost = counts.get((model, other), 0), counts.get((other, model), 0)
    return f"{won:,} of {won + lost:,}" if won + lost else "\u2013"


def thumbs_over_time(events: pl.DataFrame) -> Tally | None:
    """The share of thumbs that point up, by model and week (or month), of how many; None without thumbs with a time."""
    thumbs = events.filter(
        pl.col("kind") == EventKind.THUMB.value, pl.col("thumb").is_not_null(), pl.col("time").is_not_null()
    )
    if thumbs.is_empty():
        return None
    first, last = thumbs["time"].min(), thumbs["time"].max()
    assert isinstance(first, datetime) and isinstance(last, datetime)
    weeks = last - first <= timedelta(weeks=_MOST_PERIODS - 1)
    every, form = ("1w", "%d %b %y") if weeks else ("1mo", "%b %y")
    told = thumbs.select(
        model=pl.col("model_a").fill_null("(not given)"), up=pl.col("thumb") > 0,
        period=pl.col("time").dt.truncate(every),
    )  # fmt: skip
    counted = told.group_by("model", "period").agg(pl.len(), pl.col("up").sum())
    cells = {(model, period): (n, up) for model, period, n, up in counted.iter_rows()}
    periods = sorted({period for _, period in cells})[-_MOST_PERIODS:]
    sizes = told.group_by("model").len().sort("len", "model", descending=[True, False])
    models = sizes["model"].to_list()[:_MOST_MODELS]
    lines = tuple((model, tuple(_up(*cells.get((model, period), (0, 0))) for period in periods)) for model in models)
    unit = "week from the day named" if weeks else "month"
    note = f"Thumbs up, of all thumbs of that {unit}."
    left = len(sizes) - len(models)
    return Tally(
        tuple(f"{period:{form}}" for period in periods),
        lines,
        note + (f" {left:,} models with fewer are not shown." if left else ""),
    )


def _up(count: int, up: int) -> str:
    return f"{percent(up / count)} of {count:,}" if count else "\u2013"
