"""Filters over frames: what is kept, and what is dropped with the name of the rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

_PART = 25_000


@dataclass(frozen=True, slots=True)
class Filtered:
    """`dropped` has the columns of `kept` and one more, `rule`. Together they are what came in."""

    kept: pl.DataFrame
    dropped: pl.DataFrame


def of_each_row(frame: pl.DataFrame, value: pl.Expr) -> pl.Series:
    """An expression over one row at a time, some thousand rows at a time: what it makes of texts is large."""
    parts = frame.iter_slices(_PART) if frame.height else [frame]
    return pl.concat([part.with_columns(_value=value)["_value"] for part in parts])


def apply_row_rules(frame: pl.DataFrame, rules: Mapping[str, pl.Expr]) -> Filtered:
    """`apply_rules` for rules that look at one row at a time."""
    return _split(frame.with_columns(rule=of_each_row(frame, _first_broken(rules))))


def apply_rules(frame: pl.DataFrame, rules: Mapping[str, pl.Expr]) -> Filtered:
    """Drop the rows for which one of the rules is true; the first that is names the drop. Null counts as false."""
    return _split(frame.with_columns(rule=_first_broken(rules)))


def _first_broken(rules: Mapping[str, pl.Expr]) -> pl.Expr:
    named = [pl.when(broken.fill_null(False)).then(pl.lit(rule)) for rule, broken in rules.items()]
    return pl.coalesce(named) if named else pl.lit(None, pl.String)


def _split(marked: pl.DataFrame) -> Filtered:
    return Filtered(marked.filter(pl.col("rule").is_null()).drop("rule"), marked.filter(pl.col("rule").is_not_null()))


def keep_first(frame: pl.DataFrame, key: pl.Expr, rule: str) -> Filtered:
    """Keep the first row of each key, in the order of the frame."""
    return apply_rules(frame, {rule: ~key.is_first_distinct()})
