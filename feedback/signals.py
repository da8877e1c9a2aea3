"""From what people did to rows: the rules by signal, over the working frame with `prompt_id`, `cluster` and `split`.

Each function returns candidate rows (feedback/candidates.py) and what was lost in making them. Nothing here looks at
the text of an answer; that is feedback/clean's.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from feedback.candidates import ABOUT, candidate, merge
from feedback.events import Choice, EventKind
from feedback.filtering import Filtered, apply_rules
from feedback.settings import BuildSettings, KtoSettings, RatingSettings
from feedback.working import IN_CONVERSATION

_KIND = pl.col("kind")


@dataclass(frozen=True, slots=True)
class Signals:
    """Candidate rows by kind; each `dropped` has the rule that lost them."""

    sft: Filtered
    pairs: Filtered
    kto: Filtered


def make_rows(work: pl.DataFrame, settings: BuildSettings) -> Signals:
    """All candidate rows of a working frame."""
    verdicts = _verdicts(work, settings.ratings)
    judged = judge(verdicts)
    pairs = make_pairs(work, judged.kept, settings)
    sft = make_sft(work, judged, settings)
    return Signals(sft=sft, pairs=pairs, kto=make_kto(work, verdicts, settings.kto))


def make_sft(work: pl.DataFrame, judged: Filtered, settings: BuildSettings) -> Filtered:
    """Accepted answers. Never one that was disliked as often as liked: `judged` decides."""
    choose = settings.sft
    wanted = [rule for rule, on in (("thumb_up", choose.from_thumbs_up), ("rating_good", choose.from_ratings)) if on]
    # Where a correction was found before the answer, its row asks in the final words and leaves the wrong answer out.
    retold = work.filter(_KIND == IN_CONVERSATION).select("event_id").unique() if choose.in_conversation else None
    plain = judged.kept if retold is None else _without_events(judged.kept, retold)
    liked = plain.filter(pl.col("label") & pl.col("rules").list.set_intersection(wanted).list.len().gt(0))
    frames = [liked.with_columns(label=pl.lit(None, pl.Boolean))]
    if choose.from_corrections:
        corrections = work.filter(_KIND == EventKind.CORRECTION.value)
        frames.append(candidate(corrections, "correction", pl.col("corrected")))
    if choose.in_conversation:
        frames.append(candidate(work.filter(_KIND == IN_CONVERSATION), IN_CONVERSATION, pl.col("corrected")))
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
        corrections = work.filter(_KIND == EventKind.CORRECTION.value)
        frames.append(candidate(corrections, "correction", pl.col("corrected"), label=pl.lit(True)))
        frames.append(candidate(corrections, "correction", pl.col("answer_a"), label=pl.lit(False)))
    return judge(pl.concat(frames))


def judge(verdicts: pl.DataFrame) -> Filtered:
    """One row a question and answer: `label` by majority, `weight` the margin of the vote from 0 to 1."""
    key = pl.struct("prompt_id", "answer").hash()
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


def make_pairs(work: pl.DataFrame, judged: pl.DataFrame, settings: BuildSettings) -> Filtered:
    """Preferences from every source that settings name; where sources disagree the heavier one stays."""
    choose = settings.pairs
    corrections = work.filter(_KIND == EventKind.CORRECTION.value)
    frames, dropped = [], []
    if choose.from_choices:
        votes = choice_pairs(work, margin_scale=choose.margin_scale, min_agreement=choose.min_agreement)
        frames.append(votes.kept)
        dropped.append(votes.dropped)
    if choose.from_corrections:
        margin = pl.lit(choose.correction_margin)
        made = candidate(corrections, "correction", pl.col("corrected"), other=pl.col("answer_a"), margin=margin)
        frames.append(made)
        frames.append(_against_correction(judged, made, choose.correction_margin))
    if choose.from_ratings:
        frames.append(_rating_pairs(work, gap=choose.min_rating_gap, scale=choose.margin_scale))
    if choose.from_thumbs:
        frames.append(_thumb_pairs(judged, cap=choose.thumb_weight_cap))
    if choose.in_conversation:
        weight, found = pl.lit(choose.in_conversation_weight), work.filter(_KIND == IN_CONVERSATION)
        frames.append(
            candidate(found, IN_CONVERSATION, pl.col("corrected"), other=pl.col("answer_a"), margin=pl.lit(0.0),
                      weight=weight)
        )  # fmt: skip
    if not frames:
        frames.append(candidate(work.head(0), "choice", pl.col("answer_a")))
    merged = _without_contradictions(merge([f.filter(pl.col("answer") != pl.col("other")) for f in frames]))
    return Filtered(merged.kept, pl.concat([*dropped, merged.dropped]))


def choice_pairs(work: pl.DataFrame, *, margin_scale: float, min_agreement: float) -> Filtered:
    """Side-by-side choices: one row for two answers of a question, whoever and however many judged them.

    The weight is the winner's lead as a share of the votes, the margin the mean strength of the winner's votes.
    """
    decided = work.filter(
        (_KIND == EventKind.SIDE_BY_SIDE.value) & pl.col("choice").is_in([Choice.A.value, Choice.B.value])
    )
    won = pl.col("choice") == Choice.A.value
    made = candidate(
        decided,
        "choice",
        pl.when(won).then("answer_a").otherwise("answer_b"),
        other=pl.when(won).then("answer_b").otherwise("answer_a"),
        margin=pl.col("strength").fill_null(0.0) * margin_scale,
    )
    unordered = made.with_columns(key=_unordered(), forward=pl.col("answer") < pl.col("other"))
    many = pl.col("key").is_duplicated()
    single = unordered.filter(~many).drop("key", "forward")
    forward = pl.col("forward")
    ahead = forward.sum() * 2 > pl.len()
    winner = forward == ahead
    voted = unordered.filter(many).group_by("key", maintain_order=True).agg(
        *(pl.col(name).first() for name in ABOUT),
        answer=pl.when(ahead).then(pl.col("answer").filter(forward).first())
        .otherwise(pl.col("answer").filter(~forward).first()),
        other=pl.when(ahead).then(pl.col("other").filter(forward).first())
        .otherwise(pl.col("other").filter(~forward).first()),
        label=pl.lit(None, pl.Boolean),
        margin=pl.col("margin").filter(winner).mean(),
        share=pl.max_horizontal(forward.mean(), (~forward).mean()),
        events=pl.col("events").list.explode(keep_nulls=False, empty_as_null=False),
    )  # fmt: skip
    voted = voted.with_columns(
        weight=2 * pl.col("share") - 1, rules=pl.lit(["choice", "majority"], pl.List(pl.String))
    )
    undecided = (pl.col("share") <= min_agreement) | (pl.col("weight") <= 0)
    checked = apply_rules(voted, {"no_majority": undecided})
    kept = pl.concat([single, checked.kept.select(made.columns)]).sort("row_order", maintain_order=True)
    return Filtered(kept, checked.dropped.select(*made.columns, "rule"))


def unused(events: pl.DataFrame) -> pl.DataFrame:
    """`event_id`, `rule` for events of which no row was made, by what they say."""
    choice = pl.col("choice")
    rule = (
        pl.when(choice == Choice.SKIPPED.value).then(pl.lit("skipped_choice"))
        .when(choice == Choice.BOTH_GOOD.value).then(pl.lit("tie_both_good"))
        .when(choice == Choice.BOTH_BAD.value).then(pl.lit("tie_both_bad"))
        .when(_KIND == EventKind.RATING.value).then(pl.lit("rating_in_between"))
        .otherwise(pl.lit("signal_off"))
    )  # fmt: skip
    return events.with_columns(rule=rule)


def _verdicts(work: pl.DataFrame, ratings: RatingSettings) -> pl.DataFrame:
    """One row a thumb or telling rating, with its label and the rule by which it has one."""
    thumb, rating = pl.col("thumb"), pl.col("rating")
    rule = (
        pl.when((_KIND == EventKind.THUMB.value) & (thumb == 1)).then(pl.lit("thumb_up"))
        .when((_KIND == EventKind.THUMB.value) & (thumb == -1)).then(pl.lit("thumb_down"))
        .when((_KIND == EventKind.RATING.value) & (rating >= ratings.good)).then(pl.lit("rating_good"))
        .when((_KIND == EventKind.RATING.value) & (rating <= ratings.bad)).then(pl.lit("rating_bad"))
    )  # fmt: skip
    told = work.with_columns(rule=rule).filter(pl.col("rule").is_not_null())
    good = pl.col("rule").is_in(["thumb_up", "rating_good"])
    return candidate(told, pl.col("rule"), pl.col("answer_a"), label=good)


def _both(work: pl.DataFrame, tie: Choice, rule: str) -> list[pl.DataFrame]:
    ties = work.filter((_KIND == EventKind.SIDE_BY_SIDE.value) & (pl.col("choice") == tie.value))
    return [candidate(ties, rule, pl.col(side)) for side in ("answer_a", "answer_b")]


def _best_of(rows: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """For each question the row of the largest weight, the first of equals: its answer, events and `columns`."""
    best = rows.sort("weight", "row_order", descending=[True, False], maintain_order=True)
    best = best.unique("prompt_id", keep="first", maintain_order=True)
    return best.select("prompt_id", *columns, better="answer", better_events="events")


def _joined_events() -> pl.Expr:
    return pl.concat_list("better_events", "events").list.unique(maintain_order=True)


def _against_correction(judged: pl.DataFrame, corrections: pl.DataFrame, margin: float) -> pl.DataFrame:
    """Disliked answers beside what a person wrote for the same question."""
    both = judged.filter(~pl.col("label")).join(
        _best_of(corrections), on="prompt_id", how="inner", maintain_order="left"
    )
    return candidate(both, "down_vs_correction", pl.col("better"), other=pl.col("answer"), margin=pl.lit(margin),
                     weight=pl.col("weight"), events=_joined_events())  # fmt: skip


def _thumb_pairs(judged: pl.DataFrame, *, cap: float) -> pl.DataFrame:
    """Disliked answers beside the best-liked one to the same question; linear in the number of answers."""
    thumbs = judged.filter(pl.col("rules").list.set_intersection(["thumb_up", "thumb_down"]).list.len() > 0)
    best = _best_of(thumbs.filter("label"), "weight").rename({"weight": "better_weight"})
    both = thumbs.filter(~pl.col("label")).join(best, on="prompt_id", how="inner", maintain_order="left")
    full = pl.min_horizontal("weight", "better_weight")
    rules = pl.when(full > cap).then(pl.lit(["thumb_pair", "weight_capped"], pl.List(pl.String)))
    rules = rules.otherwise(pl.lit(["thumb_pair"], pl.List(pl.String)))
    return candidate(both, "thumb_pair", pl.col("better"), other=pl.col("answer"), margin=pl.lit(0.0),
                     weight=pl.min_horizontal(full, pl.lit(cap)), events=_joined_events(), rules=rules)  # fmt: skip


def _rating_pairs(work: pl.DataFrame, *, gap: float, scale: float) -> pl.DataFrame:
    """The best-rated answer of a question beside each one rated lower by `gap` or more."""
    rated = work.filter(_KIND == EventKind.RATING.value).sort("row_order")
    answers = rated.group_by(pl.struct("prompt_id", "answer_a").hash().alias("key"), maintain_order=True).agg(
        *(pl.col(name).first() for name in ABOUT),
        answer=pl.col("answer_a").first(),
        weight=pl.col("rating").mean(),
        events=pl.col("events").list.explode(keep_nulls=False, empty_as_null=False),
    )
    best = _best_of(answers, "weight").rename({"weight": "best"})
    both = answers.join(best, on="prompt_id", how="inner", maintain_order="left")
    lead = pl.col("best") - pl.col("weight")
    both = both.filter((lead >= gap) & (lead > 0))
    return candidate(both, "rating_pair", pl.col("better"), other=pl.col("answer"), margin=lead * scale,
                     events=_joined_events())  # fmt: skip


def _unordered() -> pl.Expr:
    """The same for (x over y) and (y over x)."""
    low, high = pl.min_horizontal("answer", "other"), pl.max_horizontal("answer", "other")
    return pl.struct("prompt_id", low.alias("low"), high.alias("high")).hash()


def _without_contradictions(rows: pl.DataFrame) -> Filtered:
    """Of x over y and y over x the heavier one; neither when they weigh the same."""
    key = _unordered()
    heaviest = pl.col("weight").max().over("key")
    alone = pl.len().over("key") == 1
    tied = (pl.col("weight") == heaviest).sum().over("key") > 1
    loses = ~alone & (tied | (pl.col("weight") < heaviest))
    checked = apply_rules(rows.with_columns(key=key), {"contradiction": loses})
    return Filtered(checked.kept.drop("key"), checked.dropped.drop("key"))


def _without_events(rows: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """Rows without those that only these events made."""
    if events.is_empty():
        return rows
    numbered = rows.with_row_index("number")
    others = numbered.select("number", event_id="events").explode("event_id").join(events, on="event_id", how="anti")
    return numbered.join(others.select("number").unique(), on="number", how="semi", maintain_order="left").drop("number")
