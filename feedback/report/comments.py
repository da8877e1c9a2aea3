"""What people said in words, and single judgements of theirs to look at: for reports of builds, redacted here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
from raylign.feedback.build_result import Example
from raylign.feedback.clean.personal_data import redact_text
from raylign.feedback.events import Choice, EventKind
from raylign.feedback.ledger import excerpt, whole
from raylign.feedback.trust.judgements import rater
from raylign.feedback.turns import last_user
from raylign.pages.numbers import percent

_MOST_REASONS = 15
_MOST_COMMENTS = 12
_OF_A_PERSON = 4
_GOOD, _BAD = "good", "bad"


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason and how often it was given, for answers that were liked and disliked."""

    text: str
    count: str
    liked: str


@dataclass(frozen=True, slots=True)
class Comment:
    """One comment, and what it is about."""

    text: str
    about: str
    event_id: str


@dataclass(frozen=True, slots=True)
class Comments:
    """Reasons by how often they were given, comments spread over the log, and how many there are of each."""

    reasons: tuple[Reason, ...]
    comments: tuple[Comment, ...]
    num_reasons: int  # different ones
    num_comments: int


def comments_of(events: pl.DataFrame) -> Comments:
    """Of events (EVENT_SCHEMA, prompts packed) as a build hands them to its report."""
    liked = (
        pl.when(pl.col("thumb").is_not_null()).then(pl.col("thumb") > 0)
        .when(pl.col("rating").is_not_null()).then(pl.col("rating") > 0.5)
    )  # fmt: skip
    given = events.select("reasons", liked=liked).explode("reasons").filter(pl.col("reasons").str.strip_chars() != "")
    counted = given.group_by("reasons").agg(
        pl.len(), pl.col("liked").sum().alias("up"), pl.col("liked").is_not_null().sum().alias("known")
    )
    counted = counted.sort("len", "reasons", descending=[True, False])
    written = events.filter(pl.col("comment").str.strip_chars() != "").sort("event_id")
    spread = written.gather_every(max(1, written.height // _MOST_COMMENTS)).head(_MOST_COMMENTS)
    return Comments(
        reasons=tuple(
            Reason(
                excerpt(redact_text(text)), f"{count:,}", f"{percent(up / known)} of {known:,}" if known else "\u2013"
            )
            for text, count, up, known in counted.head(_MOST_REASONS).iter_rows()
        ),
        comments=tuple(
            Comment(excerpt(redact_text(row["comment"])), excerpt(row["asked"]), row["event_id"])
            for row in spread.with_columns(asked=_asked()).iter_rows(named=True)
        ),
        num_reasons=counted.height,
        num_comments=written.height,
    )


def judgements_of(events: pl.DataFrame, people: Sequence[str]) -> dict[str, tuple[Example, ...]]:
    """A few judgements of each of `people`, spread over theirs."""
    theirs = events.with_columns(rater=rater(), asked=_asked()).filter(pl.col("rater").is_in(list(people)))
    found = {}
    for (name,), rows in theirs.sort("event_id").group_by("rater", maintain_order=True):
        few = rows.gather_every(max(1, rows.height // _OF_A_PERSON)).head(_OF_A_PERSON)
        found[f"{name}"] = tuple(_example(row) for row in few.iter_rows(named=True))
    return found


def _asked() -> pl.Expr:
    return last_user(pl.col("prompt"))


def _example(row: dict[str, object]) -> Example:
    """As chosen: the preferred answer first, where one was."""
    answers = [row["response_a"], row["response_b"] or row["corrected"]]
    if row["kind"] == EventKind.CORRECTION.value or row["choice"] == Choice.B.value:
        answers.reverse()
    first, second = (f"{text}" if text else "" for text in answers)
    return Example(
        event_ids=(f"{row['event_id']}",),
        prompt=excerpt(f"{row['asked']}"),
        answer=excerpt(first),
        other=excerpt(second),
        whole=whole(f"{row['prompt']}", ("answer", first), ("other answer", second)),
    )
