"""Rows whose answer was cut at the token limit: an end token after it was never sampled, and must not be learned.

Told by the answer's own events: a row names the events it was made of, and its texts are theirs.
"""

from __future__ import annotations

import polars as pl
from raylign.data.types import FinishReason
from raylign.feedback.corrections import without_apology
from raylign.feedback.working import found_in_conversation


def with_cut_flags(rows: pl.DataFrame, work: pl.DataFrame) -> pl.DataFrame:
    """Candidate rows with `answer_cut` and `other_cut`; what no event tells of counts as finished."""
    cut = _cut_texts(work)
    if cut.is_empty():
        return rows.with_columns(answer_cut=pl.lit(False), other_cut=pl.lit(False))
    numbered = rows.with_row_index("number")
    named = numbered.select("number", "answer", "other", event_id="events").explode("event_id")
    cuts = named.join(cut, on="event_id", how="inner").group_by("number").agg(
        answer_cut=(pl.col("answer") == pl.col("text")).any(),
        other_cut=(pl.col("other") == pl.col("text")).any(),
    )  # fmt: skip
    joined = numbered.join(cuts, on="number", how="left", maintain_order="left").drop("number")
    return joined.with_columns(pl.col("answer_cut", "other_cut").fill_null(False))


def _cut_texts(work: pl.DataFrame) -> pl.DataFrame:
    """`event_id`, `text` of each answer that was logged as cut, also as a correction's row tells it."""
    logged = work.filter(~found_in_conversation())
    sides = [
        logged.filter(pl.col(f"finish_reason_{side}") == FinishReason.LENGTH.value).select(
            "event_id", text=f"answer_{side}"
        )
        for side in ("a", "b")
    ]
    texts = pl.concat(sides)
    return pl.concat([texts, texts.with_columns(without_apology(pl.col("text")))]).unique()
