"""Do people who judged the same pair agree? Krippendorff's alpha and the share that agrees, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from raylign.feedback.trust.crossed import Crossed
from raylign.feedback.trust.intervals import CONFIDENCE, Estimate, Floats, ratio, share_of_variance, t_of, wilson, z_of
from raylign.feedback.trust.judgements import judged_by_several

_SAID = ("first", "second", "both_good", "both_bad")
LEAST_PEOPLE = 20  # who count equally: with fewer nothing is known of people like them


@dataclass(frozen=True, slots=True)
class Agreement:
    """Over pairs judged by two people or more. None: nobody judged the same pair, or all said the same."""

    pairs_judged: int
    pairs_with_several: int
    raters: int  # people behind those
    by_person: bool  # whether the intervals hold for people like these; else for these people and other pairs
    alpha: Estimate | None  # nominal, four categories; 1 perfect, 0 chance, below 0 worse than chance
    agree: Estimate | None  # share of two people's judgements that are equal
    agree_decided: Estimate | None  # the same where both named a winner: what papers report (63 to 77 %)


def agreement(judged: pl.DataFrame) -> Agreement:
    """Agreement of `judged` (JUDGEMENT_SCHEMA); each person counts once a pair."""
    # Pairs are numbered as they first came and not by hash: sums of floats depend on order.
    rows = judged_by_several(judged).with_row_index("place").select(
        pair=pl.col("place").min().over("pair"), rater=pl.col("rater").rank("dense"), said=_said()
    )  # fmt: skip
    everybody, decided = _crossed(rows, len(_SAID)), _crossed(rows.filter(pl.col("said") < 2), 2)
    by_person = everybody.people >= LEAST_PEOPLE
    return Agreement(
        pairs_judged=judged["pair"].n_unique(),
        pairs_with_several=len(everybody.counts),
        raters=rows["rater"].n_unique(),
        by_person=by_person,
        alpha=alpha_by_person(everybody) if by_person else alpha_nominal(everybody.counts),
        agree=agree_by_person(everybody) if by_person else percent_agreement(everybody.counts),
        agree_decided=agree_by_person(decided) if by_person else percent_agreement(decided.counts),
    )


def _crossed(rows: pl.DataFrame, kinds: int) -> Crossed:
    return Crossed.of(rows["pair"].to_numpy(), rows["rater"].to_numpy(), rows["said"].to_numpy(), kinds)


def _said() -> pl.Expr:
    return pl.col("picked").replace_strict(list(_SAID), range(len(_SAID)), return_dtype=pl.Int64)


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


def alpha_by_person(judged: Crossed) -> Estimate | None:
    """`alpha_nominal` with an interval for people and pairs like these, linear in the totals alpha is a function of."""
    plain, people = alpha_nominal(judged.counts), judged.people
    if plain is None or plain.value == 1:
        return plain
    slope = _gradient(np.array([_disagreement(judged.counts).sum(), *judged.counts.sum(0)]))
    effect = 2 * slope[0] * (1 - np.eye(judged.kinds)) + slope[1:, None] + slope[None, 1:]
    half = t_of(people - 1) * judged.variance(effect) ** 0.5
    return Estimate(plain.value, max(-1.0, plain.value - half), min(1.0, plain.value + half), plain.count)


def agree_by_person(judged: Crossed) -> Estimate | None:
    """`percent_agreement` with an interval for people and pairs like these: Wilson's by the variance over both."""
    plain, people = percent_agreement(judged.counts), judged.people
    if plain is None or people < 2:
        return plain
    # Half the judgements are so many duos, as each counts 1 / (n - 1).
    effect = (np.eye(judged.kinds) - plain.value) / (len(judged.item) / 2)
    return share_of_variance(plain, judged.variance(effect), people)


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
