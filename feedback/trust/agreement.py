"""Do people who judged the same pair agree? Krippendorff's alpha and the share that agrees, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from raylign.feedback.trust.intervals import CONFIDENCE, Estimate, Floats, ratio, wilson, z_of
from raylign.feedback.trust.judgements import judged_by_several

_COUNTS = {name: f"num_{name}" for name in ("first", "second", "both_good", "both_bad")}


@dataclass(frozen=True, slots=True)
class Agreement:
    """Over pairs judged by two people or more. None: nobody judged the same pair, or all said the same."""

    pairs_judged: int
    pairs_with_several: int
    raters: int  # people behind those
    alpha: Estimate | None  # nominal, four categories; 1 perfect, 0 chance, below 0 worse than chance
    agree: Estimate | None  # share of two people's judgements that are equal
    agree_decided: Estimate | None  # the same where both named a winner: what papers report (63 to 77 %)


def agreement(judged: pl.DataFrame) -> Agreement:
    """Agreement of `judged` (JUDGEMENT_SCHEMA); each person counts once a pair."""
    rows = judged_by_several(judged)
    several = rows.group_by("pair").agg(
        *((pl.col("picked") == name).sum().cast(pl.Int64).alias(column) for name, column in _COUNTS.items())
    )
    columns = list(_COUNTS.values())
    # Sorted: sums of floats depend on order, and groups come in any.
    table = several.select(columns).sort(columns).to_numpy().astype(np.float64)
    decided = table[:, :2][table[:, :2].sum(1) > 1]
    return Agreement(
        pairs_judged=judged["pair"].n_unique(),
        pairs_with_several=several.height,
        raters=rows["rater"].n_unique(),
        alpha=alpha_nominal(table),
        agree=percent_agreement(table),
        agree_decided=percent_agreement(decided),
    )


def agreement_with_others(judged: pl.DataFrame) -> pl.DataFrame:
    """One row a rater: `shared` pairs on which others named a winner too, and `agree`, the sum over them of the share
    of the others who named the same. Sorted by rater."""
    decided = judged_by_several(judged.filter(pl.col("known"), pl.col("score_a") != 0.5))
    firsts = pl.col("picked") == "first"
    votes = decided.group_by("pair").agg(firsts=firsts.sum().cast(pl.Int64), n=pl.len().cast(pl.Int64))
    mine = decided.select("pair", "rater", mine=firsts).join(votes, on="pair")
    others = (pl.col("firsts") - pl.col("mine").cast(pl.Int64)) / (pl.col("n") - 1)
    agree = pl.when("mine").then(others).otherwise(1 - others)
    # Sorted before summing: a float sum depends on order, and joins keep none.
    return mine.group_by("rater").agg(agree=agree.sort().sum(), shared=pl.len().cast(pl.Int64)).sort("rater")


def alpha_nominal(counts: Floats) -> Estimate | None:
    """Krippendorff's alpha for nominal data. `counts` is [units, categories]; units with one value are left out.

    alpha = 1 - D_o / D_e, with observed disagreement D_o = sum_u (n_u^2 - sum_k n_uk^2) / (n_u - 1) / n and expected
    D_e = (n^2 - sum_k n_k^2) / (n (n - 1)). The interval is the infinitesimal jackknife over units.
    """
    counts = counts[counts.sum(1) > 1]
    if not len(counts):
        return None
    sums = np.column_stack([_disagreement(counts), counts])  # alpha is a function of these columns' totals
    total = sums.sum(0)
    chance = _expected_disagreement(total[1:])
    if chance <= 0:
        return None
    if not total[0]:  # no spread to measure: the least agreement Wilson allows, against the same chance
        equal = wilson(len(counts), len(counts))
        return Estimate(1.0, max(-1.0, 1 - (1 - equal.low) / chance), 1.0, len(counts)) if equal else None
    gradient = _gradient(total)
    influence = (sums - sums.mean(0)) @ gradient
    half = z_of(CONFIDENCE) * float(np.sqrt((influence**2).sum() * len(sums) / max(1, len(sums) - 1)))
    value = _alpha(total)
    return Estimate(value, max(-1.0, value - half), min(1.0, value + half), len(sums))


def percent_agreement(counts: Floats) -> Estimate | None:
    """1 - D_o of `alpha_nominal`: the chance that another person, asked about the same pair, said the same."""
    counts = counts[counts.sum(1) > 1]
    size = counts.sum(1)
    return ratio(size - _disagreement(counts), size)


def _alpha(total: Floats) -> float:
    return float(1 - total[0] / total[1:].sum() / _expected_disagreement(total[1:]))


def _gradient(total: Floats) -> Floats:
    """Of alpha by each total, by central differences."""
    steps = 1e-5 * np.maximum(1.0, np.abs(total))
    return np.array([(_alpha(total + m) - _alpha(total - m)) for m in np.diag(steps)]) / (2 * steps)


def _expected_disagreement(values: Floats) -> float:
    n = float(values.sum())
    return (n * n - float((values * values).sum())) / (n * (n - 1))


def _disagreement(counts: Floats) -> Floats:
    size = counts.sum(1)
    return (size * size - (counts * counts).sum(1)) / (size - 1)
