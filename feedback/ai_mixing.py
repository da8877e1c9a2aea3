"""Which of a model's judgements a build takes beside people's, and what they count there."""

from __future__ import annotations

import polars as pl
from raylign.feedback.events import Choice, EventKind
from raylign.feedback.filtering import Filtered, apply_rules
from raylign.feedback.settings import AiVotes, TrustSettings
from raylign.feedback.trust.agreement import agreement_with_others
from raylign.feedback.trust.intervals import wilson
from raylign.feedback.trust.judgements import rater
from raylign.feedback.weights import VOTE_WEIGHT, choices_of

BY_AI = "by_ai"
"""Column of a working frame: a model made the event."""


def with_ai_marks(work: pl.DataFrame, ai_events: pl.Series) -> pl.DataFrame:
    """A working frame with BY_AI, by the ids of events of `source: ai`."""
    return work.with_columns(pl.col("event_id").is_in(ai_events.implode()).alias(BY_AI))


def without_unwanted(work: pl.DataFrame, settings: TrustSettings) -> Filtered:
    """A working frame with BY_AI, without the model's judgements that the settings do not want."""
    by_ai = pl.col(BY_AI)
    if settings.ai is AiVotes.OFF:
        return apply_rules(work, {"ai_off": by_ai})
    rules = {}
    if settings.ai_min_agreement > 0:
        distrusted = [name for name in _judges(work) if _agrees_at_least(work, name) < settings.ai_min_agreement]
        rules["ai_agrees_too_little"] = by_ai & rater().is_in(distrusted)
    if settings.ai is AiVotes.WHERE_NONE:
        decided = work.filter(~by_ai & _is_choice()).select(_asked().alias("asked"))["asked"].unique()
        rules["people_decided"] = by_ai & _is_choice() & _asked().is_in(decided.implode())
    return apply_rules(work, rules)


def with_ai_weight(work: pl.DataFrame, weight: float) -> pl.DataFrame:
    """A working frame with BY_AI and VOTE_WEIGHT, whose model's votes count `weight` times as much."""
    if weight == 1:
        return work
    vote = pl.col(VOTE_WEIGHT)
    return work.with_columns(pl.when(BY_AI).then((vote * weight).round(6)).otherwise(vote).alias(VOTE_WEIGHT))


def _judges(work: pl.DataFrame) -> list[str]:
    return work.filter(BY_AI).select(rater().alias("rater"))["rater"].drop_nulls().unique().sort().to_list()


def _agrees_at_least(work: pl.DataFrame, judge: str) -> float:
    """Lower end of the 95 % interval of the share of people's votes that this judge's choices agree with; 0 without."""
    beside = choices_of(work.filter(~pl.col(BY_AI) | (rater() == judge)))
    mine = agreement_with_others(beside).filter(pl.col("rater") == judge)
    found = wilson(float(mine["agree"][0]), int(mine["shared"][0])) if mine.height else None
    return found.low if found else 0.0


def _is_choice() -> pl.Expr:
    kind = pl.col("kind") == EventKind.SIDE_BY_SIDE.value
    return (kind & pl.col("choice").is_in([Choice.A.value, Choice.B.value])).fill_null(False)


def _asked() -> pl.Expr:
    """The same for the same two answers to the same question, whatever their order."""
    texts = pl.col("answer_a").hash(), pl.col("answer_b").hash()
    low, high = pl.min_horizontal(*texts), pl.max_horizontal(*texts)
    return pl.struct(pl.col("prompt").hash(), low.alias("low"), high.alias("high")).hash()
