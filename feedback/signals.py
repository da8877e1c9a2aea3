"""From what people did to rows: the rules by signal, over the working frame with `prompt_id`, `cluster` and `split`.

Each function returns candidate rows (feedback/candidates.py) and what was lost in making them. Nothing here looks at
the text of an answer; that is feedback/clean's.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
from raylign.feedback.candidates import ABOUT, candidate, merge
from raylign.feedback.events import Choice, EventKind
from raylign.feedback.filtering import Filtered, apply_rules
from raylign.feedback.pairs import make_pairs
from raylign.feedback.settings import BuildSettings, KtoSettings, RatingSettings
from raylign.feedback.teaching import make_teaching
from raylign.feedback.working import found_in_conversation, is_kind


@dataclass(frozen=True, slots=True)
class Signals:
    """Candidate rows by kind; each `dropped` has the rule that lost them."""

    sft: Filtered
    pairs: Filtered
    kto: Filtered
    teacher: Filtered


def make_rows(work: pl.DataFrame, settings: BuildSettings) -> Signals:
    """All candidate rows of a working frame."""
    verdicts = _verdicts(work, settings.ratings)
    judged = judge(verdicts)
    pairs = make_pairs(work, judged.kept, settings)
    sft = make_sft(work, judged, settings)
    teacher = make_teaching(work, settings.teacher, settings.ratings)
    return Signals(sft=sft, pairs=pairs, kto=make_kto(work, verdicts, settings.kto), teacher=teacher)


def make_sft(work: pl.DataFrame, judged: Filtered, settings: BuildSettings) -> Filtered:
    """Accepted answers. Never one that was disliked as often as liked: `judged` decides."""
    choose = settings.sft
    wanted = [rule for rule, on in (("thumb_up", choose.from_thumbs_up), ("rating_good", choose.from_ratings)) if on]
    # A correction found before the answer adds a row; what somebody liked stays as it was liked.
    liked = judged.kept.filter(pl.col("label") & pl.col("rules").list.set_intersection(wanted).list.len().gt(0))
    frames = [liked.with_columns(label=pl.lit(None, pl.Boolean))]
    if choose.from_corrections:
        corrections = work.filter(is_kind(EventKind.CORRECTION))
        frames.append(candidate(corrections, "correction", pl.col("corrected")))
    if choose.in_conversation:
        frames.append(candidate(work.filter(found_in_conversation()), pl.col("kind"), pl.col("corrected")))
    if choose.from_both_good:
        frames += _both(work, Choice.BOTH_GOOD, "both_good")
    outvoted = judged.dropped.filter(pl.col("rules").list.set_intersection(wanted).list.len().gt(0))
    return Filtered(merge(frames), outvoted)


def make_kto(work: pl.DataFrame, verdicts: pl.DataFrame, settings: KtoSettings) -> Filtered:
    """Answers with one verdict each."""
    switches = (
        (settings.from_thumbs, ("thumb_up", "thumb_down")),
        (settings.from_ratings, ("rating_good", "rating_bad")),
    )
    wanted = [rule for on, rules in switches if on for rule in rules]
    frames = [verdicts.filter(pl.col("rules").list.first().is_in(wanted))]
    if settings.from_both_bad:
        bad = pl.lit(False)
        frames += [frame.with_columns(label=bad) for frame in _both(work, Choice.BOTH_BAD, "both_bad")]
    if settings.from_corrections:
        corrections = work.filter(is_kind(EventKind.CORRECTION))
        frames.append(candidate(corrections, "correction", pl.col("corrected"), label=pl.lit(True)))
        frames.append(candidate(corrections, "correction", pl.col("answer_a"), label=pl.lit(False)))
    return judge(pl.concat(frames))


def judge(verdicts: pl.DataFrame) -> Filtered:
    """One row a question and answer: `label` by majority, `weight` the margin of the vote from 0 to 1."""
    key = pl.struct("prompt_id", pl.col("answer").hash()).hash()
    vote = pl.when("label").then(1).otherwise(-1)
    # Sorted here, so that `first` is the event that came first.
    ordered = verdicts.sort("row_order", maintain_order=True).with_columns(key=key, vote=vote)
    rows = ordered.group_by("key", maintain_order=True).agg(
        *(pl.col(name).first() for name in (*ABOUT, "answer", "other", "margin")),
        label=pl.col("vote").sum() > 0,
        weight=pl.col("vote").sum().abs() / pl.len(),
        events=pl.col("events").list.explode(keep_nulls=False, empty_as_null=False).unique(maintain_order=True),
        rules=pl.col("rules").list.explode(keep_nulls=False, empty_as_null=False).unique(maintain_order=True),
    )
    return apply_rules(rows.select(verdicts.columns), {"mixed_verdict": pl.col("weight") == 0})


def unused(events: pl.DataFrame) -> pl.DataFrame:
    """`event_id`, `rule` for events of which no row was made, by what they say."""
    choice = pl.col("choice")
    rule = (
        pl.when(choice == Choice.SKIPPED.value).then(pl.lit("skipped_choice"))
        .when(choice == Choice.BOTH_GOOD.value).then(pl.lit("tie_both_good"))
        .when(choice == Choice.BOTH_BAD.value).then(pl.lit("tie_both_bad"))
        .when(is_kind(EventKind.RATING)).then(pl.lit("rating_in_between"))
        .otherwise(pl.lit("signal_off"))
    )  # fmt: skip
    return events.with_columns(rule=rule)


def _verdicts(work: pl.DataFrame, ratings: RatingSettings) -> pl.DataFrame:
    """One row a thumb or telling rating, with its label and the rule by which it has one."""
    thumb, rating = pl.col("thumb"), pl.col("rating")
    rule = (
        pl.when(is_kind(EventKind.THUMB) & (thumb == 1)).then(pl.lit("thumb_up"))
        .when(is_kind(EventKind.THUMB) & (thumb == -1)).then(pl.lit("thumb_down"))
        .when(is_kind(EventKind.RATING) & (rating >= ratings.good)).then(pl.lit("rating_good"))
        .when(is_kind(EventKind.RATING) & (rating <= ratings.bad)).then(pl.lit("rating_bad"))
    )  # fmt: skip
    told = work.with_columns(rule=rule).filter(pl.col("rule").is_not_null())
    good = pl.col("rule").is_in(["thumb_up", "rating_good"])
    return candidate(told, pl.col("rule"), pl.col("answer_a"), label=good)


def _both(work: pl.DataFrame, tie: Choice, rule: str) -> list[pl.DataFrame]:
    ties = work.filter(is_kind(EventKind.SIDE_BY_SIDE) & (pl.col("choice") == tie.value))
    return [candidate(ties, rule, pl.col(side)) for side in ("answer_a", "answer_b")]
