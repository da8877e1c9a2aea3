"""What the trust statistics change in a build, when asked: how much a vote counts, and how much a group of rows.

Both are pure functions of the log and the settings, so the same input gives the same bytes.
"""

from __future__ import annotations

import polars as pl
from raylign.feedback.settings import BalanceBy, TrustSettings, WeightBy
from raylign.feedback.trust.coverage import UNKNOWN, balanced_shares
from raylign.feedback.trust.judgements import judgements, rater
from raylign.feedback.trust.noise import rater_weights

VOTE_WEIGHT = "vote_weight"
"""Column of a working frame: what one choice counts, 1 on average."""


def choices_of(work: pl.DataFrame) -> pl.DataFrame:
    """The judgements (feedback.trust.judgements.JUDGEMENT_SCHEMA) of a working frame."""
    unknown = {name: pl.lit(None, pl.String) for name in ("shown_left", "surface")}
    return judgements(work.rename({"answer_a": "response_a", "answer_b": "response_b"}).with_columns(**unknown))


def with_vote_weights(work: pl.DataFrame, by: WeightBy) -> pl.DataFrame:
    """A working frame with VOTE_WEIGHT. People who share no pair with others count 1, as does everybody if all do."""
    if by is WeightBy.OFF:
        return work.with_columns(pl.lit(1.0).alias(VOTE_WEIGHT))
    found = rater_weights(choices_of(work))
    table = pl.DataFrame(
        {"rater": [one.rater for one in found], VOTE_WEIGHT: [one.weight for one in found]},
        schema={"rater": pl.String, VOTE_WEIGHT: pl.Float64},
    )
    joined = work.with_columns(rater=rater()).join(table, on="rater", how="left", maintain_order="left").drop("rater")
    # Sums of many floats differ in their last digits from machine to machine; rows must not.
    return joined.with_columns(pl.col(VOTE_WEIGHT).fill_null(1.0).round(6))


def balanced(rows: pl.DataFrame, settings: TrustSettings) -> pl.DataFrame:
    """Finished rows of a kind; those to train on weigh by their group, 1 on average. Held-out rows stay as they are."""
    if settings.balance is BalanceBy.OFF:
        return rows
    group = pl.col(settings.balance.value).fill_null(UNKNOWN)
    training = pl.col("split") == "train"
    counts = rows.filter(training).group_by(group.alias("group")).len().sort("group")
    if counts.height < 2:
        return rows
    sizes: list[int] = counts["len"].to_list()
    shares = balanced_shares(sizes, settings.balance_power)
    factors = [round(share * sum(sizes) / n, 6) for share, n in zip(shares, sizes, strict=True)]
    table = counts.select("group", factor=pl.Series(factors))
    weighed = rows.with_columns(group=group).join(table, on="group", how="left", maintain_order="left")
    return weighed.with_columns(
        weight=pl.when(training).then(pl.col("weight") * pl.col("factor")).otherwise("weight"),
        rules=pl.when(training).then(pl.col("rules").list.concat(pl.lit(["balanced"]))).otherwise("rules"),
    ).select(rows.columns)
