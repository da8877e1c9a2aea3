"""Annotators whose answers say little: too fast, always one side, always one answer, at odds with everybody.

A flag needs evidence: a least number of judgements, and an interval (wide enough for all annotators together) that
lies wholly beyond the limit. An honest annotator is flagged in at most 5 % of logs, not in 5 % of annotators.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import polars as pl
from raylign.feedback.events import EventKind
from raylign.feedback.trust.agreement import agreement_with_others
from raylign.feedback.trust.intervals import Estimate, shared_confidence, wilson
from raylign.feedback.trust.judgements import judgements, rater

_MAD_TO_SD = 1.4826  # of a normal distribution


class Flag(Enum):
    """What is odd about an annotator."""

    POSITION = "position"  # picks one side of the screen
    ONE_ANSWER = "one_answer"  # gives one answer (a thumb, a tie, a rating) far more than others do
    FAST = "fast"  # faster than a person can read, or far faster than the others
    AT_ODDS = "at_odds"  # agrees with the others far less than they do among themselves


@dataclass(frozen=True, slots=True)
class FlagRules:
    """When an annotator is flagged."""

    least_events: int = 20  # fewer say nothing about a person
    position_margin: float = 0.10  # P(left) must lie outside 0.5 -+ this, with its whole interval
    one_answer_margin: float = 0.20  # the share of one answer must exceed the others' by this, with its whole interval
    at_odds_margin: float = 0.10  # agreement must fall short of the crowd's by this, with its whole interval
    fast_seconds: float = 1.0  # a median below this is no reading
    fast_factor: float = 3.0  # a median this many times below the others' median ...
    fast_deviations: float = 3.5  # ... and this many robust standard deviations (Iglewicz and Hoaglin, 1993)


@dataclass(frozen=True, slots=True)
class Annotator:
    """What one annotator's events show. None: too few of the kind to say."""

    rater: str
    events: int
    left: Estimate | None
    answer: str | None  # the most frequent answer
    answer_share: Estimate | None
    median_seconds: float | None
    agree: Estimate | None  # with the others on the same pair, both having named a winner
    flags: tuple[Flag, ...]


@dataclass(frozen=True, slots=True)
class _Crowd:
    """What an annotator is compared with."""

    confidence: float
    seconds: tuple[float, float] | None  # centre and robust spread of log seconds
    agree: float | None  # two people on the same pair, both having named a winner


@dataclass(frozen=True, slots=True)
class Annotators:
    """All recognisable people who judged. `people` holds those with enough events, flagged first."""

    total: int
    with_enough: int
    typical_seconds: float | None  # median of the medians
    people: tuple[Annotator, ...]

    @property
    def flagged(self) -> tuple[Annotator, ...]:
        """Those with a flag."""
        return tuple(person for person in self.people if person.flags)


def annotators(
    events: pl.DataFrame, judged: pl.DataFrame | None = None, *, rules: FlagRules | None = None
) -> Annotators:
    """Every annotator (or user) of `events` (EVENT_SCHEMA); `judged` is `judgements(events)` where it is at hand."""
    rules = rules or FlagRules()
    judged = judgements(events) if judged is None else judged
    known = events.lazy().with_columns(rater=rater()).filter(pl.col("rater").is_not_null())
    totals = (
        known.group_by("rater")
        .agg(events=pl.len(), timed=pl.col("seconds_taken").count(), seconds=pl.col("seconds_taken").median())
        .collect()
    )
    table = (
        totals.filter(pl.col("events") >= rules.least_events)
        .join(_left(judged), on="rater", how="left")
        .join(_most_frequent(known.collect()), on="rater", how="left")
        .join(agreement_with_others(judged), on="rater", how="left")
        .sort("rater")
    )
    medians = table.filter(pl.col("timed") >= rules.least_events)["seconds"]
    typical = _typical(medians)
    shared = table["shared"].sum()
    agree = float(table["agree"].sum()) / float(shared) if shared else None
    crowd = _Crowd(shared_confidence(table.height), typical, agree)
    people = [_person(row, rules, crowd) for row in table.iter_rows(named=True)]
    people.sort(key=lambda person: (-len(person.flags), person.rater))
    return Annotators(totals.height, len(people), None if typical is None else math.exp(typical[0]), tuple(people))


def _left(judged: pl.DataFrame) -> pl.DataFrame:
    known = judged.filter(pl.col("known"), pl.col("picked_left").is_not_null())
    return known.group_by("rater").agg(left=pl.col("picked_left").sum().cast(pl.Int64), placed=pl.len().cast(pl.Int64))


def _most_frequent(known: pl.DataFrame) -> pl.DataFrame:
    """Of each rater: the most frequent answer among those that have no place, and how often everybody else gives it."""
    tie = pl.col("choice").is_in(["both_good", "both_bad"])
    answers = known.select(
        "rater",
        answer=pl.when(pl.col("kind") == EventKind.THUMB.value)
        .then(pl.when(pl.col("thumb") > 0).then(pl.lit("thumbs up")).otherwise(pl.lit("thumbs down")))
        .when(pl.col("kind") == EventKind.RATING.value)
        .then(pl.format("rating {}", pl.col("rating").round(3)))
        .when(tie)
        .then(pl.col("choice").str.replace("_", " "))
        .when(pl.col("choice").is_in(["a", "b"]))
        .then(pl.lit("one side")),
        kind="kind",
    ).drop_nulls()
    of_kind = answers.group_by("rater", "kind").agg(asked=pl.len().cast(pl.Int64))
    everyone = answers.group_by("kind").agg(all_asked=pl.len().cast(pl.Int64))
    all_answers = answers.group_by("kind", "answer").agg(all_given=pl.len().cast(pl.Int64))
    counted = (
        answers.filter(pl.col("answer") != "one side")  # naming a winner is what is asked for
        .group_by("rater", "kind", "answer")
        .agg(given=pl.len().cast(pl.Int64))
        .join(of_kind, on=["rater", "kind"])
        .join(everyone, on="kind")
        .join(all_answers, on=["kind", "answer"])
        .with_columns(others=(pl.col("all_given") - pl.col("given")) / (pl.col("all_asked") - pl.col("asked")))
        .with_columns(excess=pl.col("given") / pl.col("asked") - pl.col("others").fill_nan(0.0))
        .filter(pl.col("asked") >= 5)
    )
    ordered = counted.sort("rater", "excess", "asked", "answer", descending=[False, True, True, False])
    return ordered.unique("rater", keep="first").select("rater", "answer", "given", "asked", "others")


def _typical(medians: pl.Series) -> tuple[float, float] | None:
    """Centre and robust spread of the annotators' median log seconds; None with fewer than five timed annotators."""
    logs = medians.filter(medians > 0).log()
    if len(logs) < 5:
        return None
    centre = logs.median()
    spread = (logs - centre).abs().median()
    assert isinstance(centre, float) and isinstance(spread, float)
    # Near-equal medians would make every small difference an outlier.
    return centre, max(_MAD_TO_SD * spread, math.log(1.25))


def _person(row: dict[str, object], rules: FlagRules, crowd: _Crowd) -> Annotator:
    left = _share(row["left"], row["placed"], rules.least_events, crowd.confidence)
    answer = _share(row["given"], row["asked"], rules.least_events, crowd.confidence)
    agree = _share(row["agree"], row["shared"], rules.least_events, crowd.confidence)
    timed, seconds, others = row["timed"], row["seconds"], row["others"]
    assert isinstance(timed, int) and isinstance(seconds, float | None) and isinstance(others, float | None)
    seconds = seconds if timed >= rules.least_events else None
    usual = 0.0 if others is None or math.isnan(others) else others
    flags = []
    if left is not None and (left.low > 0.5 + rules.position_margin or left.high < 0.5 - rules.position_margin):
        flags.append(Flag.POSITION)
    if answer is not None and answer.low > usual + rules.one_answer_margin:
        flags.append(Flag.ONE_ANSWER)
    if seconds is not None and _too_fast(seconds, rules, crowd.seconds):
        flags.append(Flag.FAST)
    if agree is not None and crowd.agree is not None and agree.high < crowd.agree - rules.at_odds_margin:
        flags.append(Flag.AT_ODDS)
    return Annotator(
        rater=str(row["rater"]),
        events=int(str(row["events"])),
        left=left,
        answer=str(row["answer"]) if answer is not None else None,
        answer_share=answer,
        median_seconds=seconds,
        agree=agree,
        flags=tuple(flags),
    )


def _share(part: object, whole: object, least: int, confidence: float) -> Estimate | None:
    if not isinstance(whole, int) or not isinstance(part, int | float) or whole < least:
        return None
    return wilson(part, whole, confidence=confidence)


def _too_fast(seconds: float, rules: FlagRules, typical: tuple[float, float] | None) -> bool:
    if seconds < rules.fast_seconds:
        return True
    if typical is None:
        return False
    centre, spread = typical
    below = centre - math.log(seconds)
    return below > math.log(rules.fast_factor) and below > rules.fast_deviations * spread
