"""Filters over frames: what stays, and what goes with the name of the rule that took it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True, slots=True)
class Filtered:
    """`dropped` has the columns of `kept` and one more, `rule`. Together they are what came in."""

    kept: pl.DataFrame
    dropped: pl.DataFrame


def apply_rules(frame: pl.DataFrame, rules: Mapping[str, pl.Expr]) -> Filtered:
    """Drop the rows for which one of the rules is true; the first that is names the drop. Null counts as false."""
    named = [pl.when(broken.fill_null(False)).then(pl.lit(rule)) for rule, broken in rules.items()]
    told = frame.with_columns(rule=pl.coalesce(named) if named else pl.lit(None, pl.String))
    return Filtered(told.filter(pl.col("rule").is_null()).drop("rule"), told.filter(pl.col("rule").is_not_null()))


def keep_first(frame: pl.DataFrame, key: pl.Expr, rule: str) -> Filtered:
    """Keep the first row of each key, in the order of the frame."""
    return apply_rules(frame, {rule: ~key.is_first_distinct()})
