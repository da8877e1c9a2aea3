"""Exports that overlap in time hold a judgement more than once: it counts once, as it was last.

A judgement is known again by its id; where a format has none, by everything it says (two equal rows of one file are two
judgements, and stand in the next export as two), or, where it was changed, by person, moment and answers.
"""

from __future__ import annotations

import polars as pl
from raylign.feedback.events import EVENT_SCHEMA
from raylign.feedback.importers.values import CONTENT_ID
from raylign.feedback.turns import pack

FILE = "_file"
"""The number of the file an event was read from, beside its columns until judgements are compared."""

_NO_SAYING = ("source_row", "prompt", "reasons")


def repeats_by_id(events: pl.DataFrame, several: str) -> pl.DataFrame:
    """`place` of events that are versions of another, and of the event `kept` for each: of each id the latest stays.

    Where no time tells and they differ, the last file's is the latest, and within a file the first. `several`: a
    pattern whose first group is the judgement an event is part of, where one may be several events: they stay or go
    together.
    """
    whole = pl.col("event_id").str.extract(several, 1) if several else pl.lit(None, pl.String)
    placed = events.select(
        place=pl.int_range(pl.len(), dtype=pl.UInt32), key=pl.coalesce(whole, "event_id"), file=FILE, row="source_row",
        last=pl.coalesce("updated", "time"),
    )  # fmt: skip
    placed = placed.filter(pl.col("key").is_duplicated())
    if placed.is_empty():
        return placed.select("place", kept="place")
    placed = placed.with_columns(said=_said(events[placed["place"]]))
    versions = placed.group_by("key", "file", "row", maintain_order=True).agg(
        pl.col("place").first(), pl.col("last").max(), pl.col("said").cast(pl.String).str.join(" ")
    )
    newest = (pl.col("last") == pl.col("last").max()).fill_null(False) | pl.col("last").is_null().all()
    latest = versions.filter(newest.over("key")).filter(
        (pl.col("said").n_unique().over("key") == 1) | (pl.col("file") == pl.col("file").max().over("key"))
    )
    kept = latest.unique("key", keep="first", maintain_order=True)
    kept = kept.select("key", kept="place", kept_file="file", kept_row="row")
    compared = placed.join(kept, on="key", how="left", maintain_order="left")
    other = (pl.col("file") != pl.col("kept_file")) | (pl.col("row") != pl.col("kept_row"))
    again = compared.filter(~other).with_columns(id=events["event_id"].gather(compared.filter(~other)["place"]))
    twice = again.filter(~pl.col("id").is_first_distinct())  # one row says one id twice
    gone = pl.concat([compared.filter(other).select("place", "kept"), twice.select("place", "kept")])
    return gone.sort("place")


def repeats_by_content(events: pl.DataFrame) -> pl.DataFrame:
    """The same of events whose ids are made of their content, over several files.

    Of a judgement that one person made at one moment and that the files tell otherwise, the one that was changed last
    stays; where nothing says so, the last file's.
    """
    made = events.with_columns(place=pl.int_range(pl.len(), dtype=pl.UInt32)).filter(
        pl.col("event_id").str.contains(CONTENT_ID)
    )
    told = made.select("place", "updated", file=FILE, same=_said(made), about=_about())
    told = told.with_columns(number=pl.int_range(pl.len()).over("file", "same"))
    first = told.select("same", "number", kept="place").unique(["same", "number"], keep="first", maintain_order=True)
    again = told.join(first, on=["same", "number"], how="left", maintain_order="left")
    again = again.filter(pl.col("place") != pl.col("kept")).select("place", "kept")
    return pl.concat([again, _superseded(told)]).unique("place", keep="first").sort("place")


def _superseded(told: pl.DataFrame) -> pl.DataFrame:
    """What a person's judgement was before it was changed, in files where it still is that."""
    known = told.filter(pl.col("about").is_not_null())
    known = known.filter(pl.col("file").n_unique().over("about") > 1)
    final = known.sort("updated", "file", "place", nulls_last=False).group_by("about").agg(
        pl.col("file").last().alias("kept_file")
    )  # fmt: skip
    known = known.join(final, on="about", how="left", maintain_order="left")
    there = known.filter(pl.col("file") == pl.col("kept_file"))
    before = known.filter(pl.col("file") != pl.col("kept_file")).join(there, on=["about", "same"], how="anti")
    kept = there.unique("about", keep="first", maintain_order=True).select("about", kept="place")
    return before.join(kept, on="about", how="left").select("place", "kept")


def _said(events: pl.DataFrame) -> pl.Series:
    """A hash of everything an event says."""
    plain = [pl.col(name) for name in EVENT_SCHEMA if name not in _NO_SAYING]
    turns = pack(pl.col("prompt")).hash().alias("turns")
    return events.select(pl.struct(*plain, turns, pl.col("reasons").list.join("\x1f")).hash().alias("said"))["said"]


def _about() -> pl.Expr:
    """A hash of who judged what when; null where who or when is not known."""
    known = pl.coalesce("annotator_hash", "user_hash").is_not_null() & pl.col("time").is_not_null()
    what = ("user_hash", "annotator_hash", "time", "kind", "score", "response_a", "response_b")
    return pl.when(known).then(pl.struct(*what, pack(pl.col("prompt")).hash().alias("turns")).hash())
