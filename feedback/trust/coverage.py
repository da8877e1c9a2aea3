"""Who spoke? Events by persona, topic, locale and surface, what each weighs, and weights that balance them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
from raylign.feedback.trust.judgements import SLICES, rater

UNKNOWN = "(not given)"


@dataclass(frozen=True, slots=True)
class Slice:
    """One value of a column. Shares are of all events."""

    name: str
    events: int
    people: int
    share: float
    balanced_share: float  # with p ~ n^power over the slices
    balancing_weight: float  # what a row must weigh to get there; the mean over rows is 1


@dataclass(frozen=True, slots=True)
class Coverage:
    """One column's slices, largest first. `effective_slices`: as many equal slices would be as uneven (1 / sum p^2)."""

    column: str
    slices: tuple[Slice, ...]
    effective_slices: float


@dataclass(frozen=True, slots=True)
class Concentration:
    """How few people the log comes from. Events of unknown people are left out."""

    people: int
    effective_people: float  # Kish: (sum n)^2 / sum n^2; equal to `people` when all gave equally many
    top_share: float  # of the tenth of people with most events


def coverage(events: pl.DataFrame, *, power: float = 0.6) -> tuple[Coverage, ...]:
    """Coverage of the columns of SLICES that hold anything. `power` in [0, 1]: 0 equal slices, 1 as they are."""
    given = [name for name in SLICES if events[name].null_count() < events.height]
    return tuple(_of_column(events, name, power) for name in given)


def balanced_shares(counts: Sequence[int], power: float) -> list[float]:
    """The share of each group when shares are as n^power; they sum to 1."""
    flattened = [n**power for n in counts]
    whole = sum(flattened)
    return [flat / whole for flat in flattened]


def _of_column(events: pl.DataFrame, column: str, power: float) -> Coverage:
    counts = (
        events.lazy()
        .group_by(pl.col(column).fill_null(UNKNOWN))
        .agg(n=pl.len(), people=rater().drop_nulls().n_unique())
        .sort("n", column, descending=[True, False])
        .collect()
    )
    total, balanced = events.height, balanced_shares(counts["n"].to_list(), power)
    slices = tuple(
        Slice(name, n, people, n / total, share, share / (n / total))
        for (name, n, people), share in zip(counts.iter_rows(), balanced, strict=True)
    )
    return Coverage(column, slices, 1 / sum(s.share**2 for s in slices))


def concentration(events: pl.DataFrame) -> Concentration | None:
    """How the events spread over people; None when no event names one."""
    counts = events.select(rater=rater()).drop_nulls().group_by("rater").len()["len"].sort(descending=True)
    if not len(counts):
        return None
    total = int(counts.sum())
    top = counts.head(max(1, round(len(counts) / 10)))
    squares = int((counts.cast(pl.Int64) ** 2).sum())
    return Concentration(len(counts), total * total / squares, int(top.sum()) / total)
