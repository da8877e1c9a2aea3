"""Side-by-side choices as the statistics need them: one row a judgement, sides put in one order for the same pair."""

from __future__ import annotations

import polars as pl
from raylign.feedback.events import Choice, Column, EventKind, Side
from raylign.feedback.trust.intervals import Floats

SLICES = ("persona", "topic", "locale", "surface")
"""The columns of an event that name who it came from."""

_COLUMNS: dict[str, Column] = {
    "event_id": pl.String,
    "rater": pl.String,  # annotator, else user, else "event:<id>": unknown people count as different ones
    "known": pl.Boolean,  # whether the rater is a person we can recognise again
    "time": pl.Datetime("us", "UTC"),
    "prompt": pl.UInt64,  # hash; equal prompts have equal values
    "first": pl.UInt64,  # hash of the answer that sorts first; the same pair has the same two, sides swapped or not
    "second": pl.UInt64,
    "pair": pl.UInt64,  # hash of the three above
    "judging": pl.UInt64,  # hash of pair and rater: equal where one person judged one pair again
    "picked": pl.String,  # first | second | both_good | both_bad
    "score_a": pl.Float64,  # 1 side a, 0 side b, one half a tie
    "picked_left": pl.Boolean,  # null for ties and where sides were not logged
    "a_left": pl.Boolean,
    "model_a": pl.String,
    "model_b": pl.String,
    "length_a": pl.Int64,  # characters
    "length_b": pl.Int64,
}
JUDGEMENT_SCHEMA = pl.Schema({**_COLUMNS, **dict.fromkeys(SLICES, pl.String())})
"""The columns of `judgements`. Skipped side-by-sides, and pairs of equal texts, are no judgements and not in it."""


def rater() -> pl.Expr:
    """Who judged, of an event frame: the annotator, else the user; null where neither is known."""
    return pl.coalesce("annotator_hash", "user_hash")


def judgements(events: pl.DataFrame) -> pl.DataFrame:
    """The judgements among `events` (feedback.events.EVENT_SCHEMA), in the order of time, then event id."""
    side_by_side = events.lazy().filter(
        pl.col("kind") == EventKind.SIDE_BY_SIDE.value,
        pl.col("choice").is_in([c.value for c in Choice if c is not Choice.SKIPPED]),
        pl.col("response_b").is_not_null(),
        pl.col("response_a") != pl.col("response_b"),
    )
    a_first = pl.col("response_a") < pl.col("response_b")
    a, b = pl.col("response_a").hash(), pl.col("response_b").hash()
    chose_a, chose_b = pl.col("choice") == Choice.A.value, pl.col("choice") == Choice.B.value
    a_left = pl.col("shown_left") == Side.A.value
    chose_first = pl.when(a_first).then(chose_a).otherwise(chose_b)
    rows = side_by_side.select(
        "event_id",
        rater=pl.coalesce(rater(), pl.lit("event:") + pl.col("event_id")),
        known=rater().is_not_null(),
        time="time",
        prompt=pl.col("prompt").hash(),
        first=pl.when(a_first).then(a).otherwise(b),
        second=pl.when(a_first).then(b).otherwise(a),
        picked=pl.when(~(chose_a | chose_b))
        .then("choice")
        .when(chose_first)
        .then(pl.lit("first"))
        .otherwise(pl.lit("second")),
        score_a=pl.when(chose_a).then(1.0).when(chose_b).then(0.0).otherwise(0.5),
        picked_left=pl.when(chose_a | chose_b).then(chose_a == a_left),
        a_left=a_left,
        model_a="model_a",
        model_b="model_b",
        length_a=pl.col("response_a").str.len_chars().cast(pl.Int64),
        length_b=pl.col("response_b").str.len_chars().cast(pl.Int64),
        **{name: pl.col(name) for name in SLICES},
    )
    keyed = rows.with_columns(pair=pl.struct("prompt", "first", "second").hash())
    keyed = keyed.with_columns(judging=pl.struct("pair", "rater").hash())
    return keyed.sort("time", "event_id").select(JUDGEMENT_SCHEMA.names()).collect()


def one_each(judged: pl.DataFrame) -> pl.DataFrame:
    """The latest judgement of each rater on each pair: a second thought counts once, and so does a double click."""
    return judged.unique("judging", keep="last", maintain_order=True)


def by_person(choices: pl.DataFrame, took: str) -> tuple[Floats, Floats]:
    """Of rows with `rater` and the flag `took`: how often each person took it and how often they chose, [people] each.

    Everybody who is not known counts as a person of their own.
    """
    counts = choices.group_by("rater").agg(pl.col(took).sum().cast(pl.Float64), n=pl.len().cast(pl.Float64))
    counts = counts.sort("rater")  # sums of floats depend on order
    return counts[took].to_numpy(), counts["n"].to_numpy()


def judged_by_several(judged: pl.DataFrame) -> pl.DataFrame:
    """Of `one_each`, the judgements of pairs that two people or more judged: often few, so later steps are cheap."""
    each = one_each(judged)
    return each.filter(pl.col("pair").is_duplicated())
