"""Do people pick the longer answer? The share that does, by how much longer it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import polars as pl
from raylign.feedback.trust.intervals import Estimate, share_by_person
from raylign.feedback.trust.judgements import by_person

BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.0)
"""Upper ends, as how much longer the longer answer is: 0.1 is ten percent longer. The last bucket is open."""


@dataclass(frozen=True, slots=True)
class LengthBucket:
    """Choices between answers whose longer one is from `low` to `high` (a share of the shorter) longer."""

    low: float
    high: float | None  # None: any more
    longer: Estimate | None  # share that chose the longer; None: no such choice


@dataclass(frozen=True, slots=True)
class LengthBias:
    """Over choices of one side between answers of different length (in characters)."""

    longer: Estimate | None
    buckets: tuple[LengthBucket, ...]
    equal: int  # choices between answers of one length
    median_chosen: float | None  # characters
    median_rejected: float | None

    @property
    def biased(self) -> bool:
        """Whether one half lies outside the interval."""
        return self.longer is not None and not self.longer.holds(0.5)


def length_bias(judged: pl.DataFrame) -> LengthBias:
    """Length bias of `judged` (JUDGEMENT_SCHEMA). It is a fault only where longer is not better: see the ranking."""
    decided = judged.filter(pl.col("score_a") != 0.5)
    chose_a = pl.col("score_a") == 1.0
    shorter, longer = pl.min_horizontal("length_a", "length_b"), pl.max_horizontal("length_a", "length_b")
    rows = decided.select(
        "rater",
        ratio=(longer / shorter - 1).fill_nan(0.0),
        took_longer=chose_a == (pl.col("length_a") > pl.col("length_b")),
        chosen=pl.when(chose_a).then("length_a").otherwise("length_b"),
        rejected=pl.when(chose_a).then("length_b").otherwise("length_a"),
    )
    differ = rows.filter(pl.col("ratio") > 0)
    edges = [0.0, *BUCKETS, math.inf]
    buckets = []
    for low, high in pairwise(edges):
        inside = differ.filter(pl.col("ratio") > low, pl.col("ratio") <= high)
        share = share_by_person(*by_person(inside, "took_longer"))
        buckets.append(LengthBucket(low, None if math.isinf(high) else high, share))
    medians = rows.select("chosen", "rejected").median().row(0)
    return LengthBias(
        longer=share_by_person(*by_person(differ, "took_longer")),
        buckets=tuple(buckets),
        equal=len(rows) - len(differ),
        median_chosen=medians[0],
        median_rejected=medians[1],
    )
