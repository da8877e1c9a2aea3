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
    """A table: `head` names the columns after the first, a line is one of `of` and a cell for each of them."""

    head: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...]], ...]
    note: str
    of: str = "Model"  # what a line is


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
    rated = thumbs.select(
        model=pl.col("model_a").fill_null("(not given)"), up=pl.col("thumb") > 0,
        period=pl.col("time").dt.truncate(every),
    )  # fmt: skip
    counted = rated.group_by("model", "period").agg(pl.len(), pl.col("up").sum())
    cells = {(model, period): (n, up) for model, period, n, up in counted.iter_rows()}
    periods = sorted({period for _, period in cells})[-_MOST_PERIODS:]
    sizes = rated.group_by("model").len().sort("len", "model", descending=[True, False])
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


_GROUPS = (("topic", "Topic"), ("persona", "Kind of user"))
_MOST_GROUPS = 12
_FEW = 5  # groups with fewer judgements are not shown


def quality(events: pl.DataFrame) -> tuple[Tally, ...]:
    """How good people found the answers, by topic and by persona; a table for each that the log names twice or more.

    Thumbs up of all thumbs, the mean rating, side-by-sides in which both answers were bad. The worst come first.
    """
    return tuple(found for column, of in _GROUPS if (found := _quality(events, column, of)) is not None)


def _quality(events: pl.DataFrame, column: str, of: str) -> Tally | None:
    kind, thumb, rating = pl.col("kind"), pl.col("thumb"), pl.col("rating")
    decided = (kind == EventKind.SIDE_BY_SIDE.value) & (pl.col("choice") != Choice.SKIPPED.value)
    counted = events.filter(pl.col(column).is_not_null()).group_by(column).agg(
        thumbs=thumb.is_not_null().sum(), up=(thumb > 0).sum(), ratings=rating.is_not_null().sum(),
        rating=rating.mean(), choices=decided.sum(), bad=(decided & (pl.col("choice") == Choice.BOTH_BAD.value)).sum(),
    )  # fmt: skip
    judged = counted.filter(pl.col("thumbs") + pl.col("ratings") + pl.col("choices") >= _FEW)
    if judged.height < 2:
        return None
    size = pl.col("thumbs") + pl.col("ratings") + pl.col("choices")
    liked = (
        pl.col("up") + pl.col("rating").fill_null(0) * pl.col("ratings") + pl.col("choices") - pl.col("bad")
    ) / size
    shown = judged.sort(size, column, descending=[True, False]).head(_MOST_GROUPS).sort(liked, column)
    lines = tuple(
        (
            row[column],
            (
                _up(row["thumbs"], row["up"]),
                f"{row['rating']:.2f} of {row['ratings']:,}" if row["ratings"] else "\u2013",
                _up(row["choices"], row["bad"]),
            ),
        )
        for row in shown.iter_rows(named=True)
    )
    note = "Share of how many; ratings from 0 to 1. The worst first. What is asked about differs between groups, too."
    left = counted.height - shown.height
    return Tally(
        ("thumbs up", "mean rating", "both answers bad"),
        lines,
        note + (f" {left:,} groups with fewer are not shown." if left else ""),
        of,
    )
