"""Events that cannot or may not become training data, whatever the rest of the log says."""

from __future__ import annotations

import polars as pl
from raylign.feedback.events import EventKind
from raylign.feedback.filtering import Filtered, apply_row_rules, apply_rules, keep_first
from raylign.feedback.turns import ROLE, TURN
from raylign.feedback.working import TEXTS, normalised

_INSTRUCTION = (
    r"(?i)^\s*(please\s+)?(make|keep) (it|this|that|the answer|your answer)\b"
    r"|^\s*(please\s+)?(shorten|rewrite|rephrase|redo|regenerate|translate|simplify|expand|improve|fix) "
    r"(it|this|that|the answer|your answer|please)\b"
    r"|^\s*(please\s+)?(be|use|add|remove|write|answer|try)\b[^.!?\n]{0,60}\b(more|less|fewer|again|shorter|longer)\b"
    r"|^\s*(it |this |the answer |answer )?(should|needs to|must) (be|have been) [^.!?\n]{0,40}"
    r"(shorter|longer|friendlier|clearer|polite|concise|formal|detailed|simpler)"
    r"|^\s*(too|way too|a bit too) (long|short|vague|wordy|formal|generic|technical)\b[^\n]{0,40}$"
)
_WITH_VERDICT = {
    EventKind.SIDE_BY_SIDE: pl.col("choice").is_not_null() & pl.col("answer_b").is_not_null(),
    EventKind.THUMB: pl.col("thumb").is_in([1, -1]),
    EventKind.RATING: pl.col("rating").is_between(0, 1),
    EventKind.CORRECTION: pl.lit(True),
}


def drop_unusable(work: pl.DataFrame, *, trivial_edits: bool) -> Filtered:
    """No consent, no question, empty answers, events without a verdict, corrections that are none."""
    kind, original, corrected = pl.col("kind"), pl.col("answer_a"), pl.col("corrected")
    correction = kind == EventKind.CORRECTION.value
    choice = kind == EventKind.SIDE_BY_SIDE.value
    verdict = pl.any_horizontal(*((kind == which.value) & has for which, has in _WITH_VERDICT.items()))
    last_turn = rf"(?:^|{TURN})(?:user|tool){ROLE}[^{TURN}]*\S[^{TURN}]*$"
    rules = {
        "no_consent": ~pl.col("consent"),
        "no_question": ~pl.col("prompt").str.contains(last_turn),
        "no_verdict": ~verdict.fill_null(False),
        "empty_answer": _blank(original) & ~correction | (choice & _blank(pl.col("answer_b"))),
        "identical_answers": choice & (original.str.strip_chars() == pl.col("answer_b").str.strip_chars()),
        "empty_correction": correction & (_blank(corrected) | _blank(original)),
    }
    if trivial_edits:
        rules["trivial_edit"] = correction & (normalised(original) == normalised(corrected))
        rules["instruction_not_answer"] = correction & corrected.str.contains(_INSTRUCTION)
    return apply_row_rules(work, rules)


def drop_repeated_events(work: pl.DataFrame) -> Filtered:
    """Keep the first of one person's equal judgements of equal answers; without a known person, of one conversation."""
    someone = pl.coalesce("annotator_hash", "user_hash", "conversation_id")
    verdict = pl.struct(someone, "kind", *(pl.col(t).hash() for t in TEXTS), "choice", "thumb", "rating").hash()
    # Events of nobody in particular may come from many people: only the same moment makes them one.
    key = pl.when(someone.is_null()).then(pl.struct("time", verdict.alias("verdict")).hash()).otherwise(verdict)
    return keep_first(work, key, "duplicate_event")


def drop_second_thoughts(work: pl.DataFrame) -> Filtered:
    """One person's judgements of the same answers under the same score, without those they changed later.

    Needs times: of two judgements of one moment neither is the later. A thumb without a known person is the
    conversation's own user's.
    """
    kind, a = pl.col("kind"), pl.col("answer_a").hash()
    b = pl.when(pl.col("answer_b").is_not_null()).then(pl.col("answer_b").hash()).otherwise(a)
    verdict = kind.is_in([EventKind.THUMB.value, EventKind.RATING.value])
    someone = pl.coalesce("annotator_hash", "user_hash", pl.when(verdict).then("conversation_id"))
    about = pl.when(verdict).then(pl.lit("verdict")).otherwise(kind)
    chosen = (
        pl.when(pl.col("choice") == "a")
        .then(a)
        .when(pl.col("choice") == "b")
        .then(b)
        .otherwise(pl.col("choice").hash())
    )
    texts = [pl.min_horizontal(a, b).alias("low"), pl.max_horizontal(a, b).alias("high")]
    verdicts = work.select(
        place=pl.int_range(pl.len()),
        time=pl.coalesce("updated", "time"),
        known=someone.is_not_null(),
        group=pl.struct(someone.alias("who"), about.alias("about"), pl.col("prompt").hash(), "score", *texts).hash(),
        verdict=pl.struct(kind, "thumb", "rating", pl.col("corrected").hash(), chosen.alias("chosen")).hash(),
    ).filter(pl.col("known") & pl.col("time").is_not_null())
    verdicts = verdicts.sort("time", maintain_order=True)
    changed = (pl.col("verdict") != pl.col("verdict").shift(1)).fill_null(False).cum_sum().over("group")
    verdicts = verdicts.with_columns(run=changed)
    last_run, last_time = pl.col("run").max().over("group"), pl.col("time").max().over("group")
    earlier = verdicts.filter((pl.col("run") < last_run) & (pl.col("time") < last_time))["place"]
    return apply_rules(work, {"second_thought": pl.int_range(pl.len()).is_in(earlier.implode())})


def drop_forgotten(work: pl.DataFrame, people: frozenset[str], events: frozenset[str]) -> Filtered:
    """Everything of or by forgotten people (their hashes) with all of their conversations, and forgotten events."""
    own = pl.col("user_hash").is_in(list(people)).fill_null(False)
    judged = pl.col("annotator_hash").is_in(list(people)).fill_null(False)
    held = work.filter(own & pl.col("conversation_id").is_not_null())["conversation_id"].unique()
    talked = pl.col("conversation_id").is_in(held.implode()).fill_null(False)
    return apply_rules(work, {"forgotten": own | judged | talked | pl.col("event_id").is_in(list(events))})


def _blank(text: pl.Expr) -> pl.Expr:
    return text.str.strip_chars().fill_null("") == ""
