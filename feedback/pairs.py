"""Preferences: which of two answers to a question is better, by how much, and how far to trust it."""

from __future__ import annotations

import polars as pl
from raylign.feedback.candidates import ABOUT, candidate, merge
from raylign.feedback.events import Choice, EventKind
from raylign.feedback.filtering import Filtered, apply_rules
from raylign.feedback.settings import BuildSettings
from raylign.feedback.weights import VOTE_WEIGHT
from raylign.feedback.working import found_in_conversation, is_kind


def make_pairs(work: pl.DataFrame, judged: pl.DataFrame, settings: BuildSettings) -> Filtered:
    """Preferences from every source that settings name; where sources disagree the heavier one stays."""
    choose = settings.pairs
    corrections = work.filter(is_kind(EventKind.CORRECTION))
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
        weight, found = pl.lit(choose.in_conversation_weight), work.filter(found_in_conversation())
        frames.append(
            candidate(found, pl.col("kind"), pl.col("corrected"), other=pl.col("answer_a"), margin=pl.lit(0.0),
                      weight=weight)
        )  # fmt: skip
    if not frames:
        frames.append(candidate(work.head(0), "choice", pl.col("answer_a")))
    merged = _without_contradictions(merge([f.filter(pl.col("answer") != pl.col("other")) for f in frames]))
    return Filtered(merged.kept, pl.concat([*dropped, merged.dropped]))


def choice_pairs(work: pl.DataFrame, *, margin_scale: float, min_agreement: float) -> Filtered:
    """Side-by-side choices: one row for two answers of a question, whoever and however many judged them.

    The weight is the winner's lead over the number of votes, the margin the mean strength of the winner's votes. A vote
    counts its VOTE_WEIGHT.
    """
    decided = work.filter(is_kind(EventKind.SIDE_BY_SIDE) & pl.col("choice").is_in([Choice.A.value, Choice.B.value]))
    won = pl.col("choice") == Choice.A.value
    made = candidate(
        decided,
        "choice",
        pl.when(won).then("answer_a").otherwise("answer_b"),
        other=pl.when(won).then("answer_b").otherwise("answer_a"),
        margin=pl.col("strength").fill_null(0.0) * margin_scale,
        weight=pl.col(VOTE_WEIGHT),
        rules=pl.when(pl.col(VOTE_WEIGHT) == 1).then(_named("choice")).otherwise(_named("choice", "judge_weighted")),
    )
    unordered = made.with_columns(key=_unordered(), forward=pl.col("answer") < pl.col("other"))
    many = pl.col("key").is_duplicated()
    single = apply_rules(unordered.filter(~many), {"untrusted_judge": pl.col("weight") <= 0})
    forward, vote = pl.col("forward"), pl.col("weight")
    for_it, votes = (vote * forward).sum(), vote.sum()
    ahead = for_it * 2 > votes
    winner = forward == ahead
    plain = (vote == 1).all()
    voted = unordered.filter(many).group_by("key", maintain_order=True).agg(
        *(pl.col(name).first() for name in ABOUT),
        answer=pl.when(ahead).then(pl.col("answer").filter(forward).first())
        .otherwise(pl.col("answer").filter(~forward).first()),
        other=pl.when(ahead).then(pl.col("other").filter(forward).first())
        .otherwise(pl.col("other").filter(~forward).first()),
        label=pl.lit(None, pl.Boolean),
        margin=pl.col("margin").filter(winner).mean(),
        weight=(2 * for_it - votes).abs() / pl.len(),
        share=pl.max_horizontal(for_it, votes - for_it) / votes,
        votes=votes,
        rules=pl.when(plain).then(_named("choice", "majority"))
        .otherwise(_named("choice", "majority", "judge_weighted")),
        events=pl.col("events").list.explode(keep_nulls=False, empty_as_null=False),
    )  # fmt: skip
    undecided = (pl.col("share") <= min_agreement) | (pl.col("weight") <= 0)
    checked = apply_rules(voted, {"untrusted_judge": pl.col("votes") <= 0, "no_majority": undecided})
    kept = pl.concat([single.kept.select(made.columns), checked.kept.select(made.columns)])
    dropped = pl.concat([filtered.dropped.select(*made.columns, "rule") for filtered in (single, checked)])
    return Filtered(kept.sort("row_order", maintain_order=True), dropped)


def _named(*rules: str) -> pl.Expr:
    return pl.lit(list(rules), pl.List(pl.String))


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
    capped = pl.lit(["thumb_pair", "weight_capped"], pl.List(pl.String))
    rules = pl.when(full > cap).then(capped).otherwise(pl.lit(["thumb_pair"], pl.List(pl.String)))
    return candidate(both, "thumb_pair", pl.col("better"), other=pl.col("answer"), margin=pl.lit(0.0),
                     weight=pl.min_horizontal(full, pl.lit(cap)), events=_joined_events(), rules=rules)  # fmt: skip


def _rating_pairs(work: pl.DataFrame, *, gap: float, scale: float) -> pl.DataFrame:
    """The best-rated answer of a question beside each one rated lower by `gap` or more."""
    rated = work.filter(is_kind(EventKind.RATING)).sort("row_order")
    answers = rated.group_by(
        pl.struct("prompt_id", pl.col("answer_a").hash()).hash().alias("key"), maintain_order=True
    ).agg(
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
    texts = pl.col("answer").hash(), pl.col("other").hash()
    low, high = pl.min_horizontal(*texts), pl.max_horizontal(*texts)
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
