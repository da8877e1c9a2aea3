"""Rows in the making: the shared columns of what signals produce, and how equal rows become one."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from raylign.feedback.events import Column

ABOUT = ("prompt", "prompt_id", "cluster", "split", "user_hash", "persona", "locale", "topic", "row_order")
"""What a row takes from its (first) event."""

_MADE: dict[str, Column] = {
    "answer": pl.String,  # SFT and KTO: the answer; pairs: the chosen one
    "other": pl.String,  # pairs: the rejected one
    "label": pl.Boolean,  # KTO
    "margin": pl.Float64,  # pairs
    "weight": pl.Float64,
    "events": pl.List(pl.String),
    "rules": pl.List(pl.String),
}


def candidate(frame: pl.DataFrame, rule: str | pl.Expr, answer: pl.Expr, **others: pl.Expr) -> pl.DataFrame:
    """Rows made of working rows by one rule. `others`: other, label, margin, weight (1 when not given), events."""
    made = {"other": pl.lit(None), "label": pl.lit(None), "margin": pl.lit(None), "weight": pl.lit(1.0)}
    made |= {"events": pl.col("events"), **others, "answer": answer}
    rules = pl.concat_list(pl.lit(rule) if isinstance(rule, str) else rule)
    made["rules"] = others.get("rules", rules)
    return frame.select(*ABOUT, *(made[name].cast(kind).alias(name) for name, kind in _MADE.items()))


def merge(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """All rows; those equal in question, answers and label become one, with the events and rules of all.

    Margin and weight are the largest. Events are in order of time.
    """
    rows = pl.concat(frames, how="vertical").sort("row_order", maintain_order=True)
    key = pl.struct("prompt_id", "label", pl.col("answer", "other").hash()).hash()
    rows = rows.with_columns(key=key)
    repeated = rows.filter(pl.col("key").is_duplicated())
    if repeated.is_empty():
        return rows.drop("key")
    single = rows.filter(~pl.col("key").is_duplicated())
    about = [name for name in rows.columns if name not in ("key", "margin", "weight", "events", "rules")]
    joined = repeated.group_by("key", maintain_order=True).agg(
        *(pl.col(name).first() for name in about),
        pl.col("margin", "weight").max(),
        *(
            pl.col(name).list.explode(keep_nulls=False, empty_as_null=False).unique(maintain_order=True)
            for name in ("events", "rules")
        ),
    )
    return pl.concat([single, joined.select(single.columns)]).drop("key").sort("row_order", maintain_order=True)
