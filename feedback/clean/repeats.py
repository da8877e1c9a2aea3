"""Rows that weigh more than they should: near duplicates, one person's or one question's many rows."""

from __future__ import annotations

import polars as pl
from raylign.feedback.filtering import Filtered, apply_rules, keep_first, of_each_row
from raylign.feedback.working import normalised


def drop_near_duplicates(rows: pl.DataFrame) -> Filtered:
    """Of nearly equal questions (`cluster`) with equal answers, keep the first row.

    Answers are equal when only case, spaces and punctuation tell them apart.
    """
    answer, other = normalised(pl.col("answer")).hash(), normalised(pl.col("other")).hash()
    key = pl.struct("cluster", "label", answer, other.alias("b")).hash()
    return keep_first(rows, pl.lit(of_each_row(rows, key)), "near_duplicate")


def drop_above_caps(rows: pl.DataFrame, *, per_user: int, per_prompt: int) -> Filtered:
    """At most so many rows of a user, then of nearly equal questions, in the order of the frame; 0: no cap.

    Rows of nobody known have no user cap.
    """
    place = pl.int_range(pl.len())
    rules = {}
    if per_user:
        rules["user_cap"] = pl.col("user_hash").is_not_null() & (place.over("user_hash") >= per_user)
    within_user = apply_rules(rows, rules)
    if not per_prompt:
        return within_user
    within_both = apply_rules(within_user.kept, {"prompt_cap": place.over("cluster") >= per_prompt})
    return Filtered(within_both.kept, pl.concat([within_user.dropped, within_both.dropped]))
