"""The working frame of a build: one row an event, conversations packed into text, in the order events happened."""

from __future__ import annotations

import polars as pl
from raylign.feedback.events import EVENT_SCHEMA, EventKind
from raylign.feedback.turns import ROLE, TURN, pack

IN_CONVERSATION = "in_conversation"
JUDGED = "in_conversation_judged"
"""`kind` of what feedback/corrections.py finds, by its rules or by a model; every other kind is an EventKind."""

TEXTS = ("prompt", "answer_a", "answer_b", "corrected")
SAID = "said"
"""What the person said about the answer."""
REDACTED = (*TEXTS, SAID)
_KEPT = (
    "event_id", "kind", "conversation_id", "turn", "user_hash", "annotator_hash", "time", "updated", "model_a",
    "model_b", "finish_reason_a", "finish_reason_b", "choice", "strength", "thumb", "rating", "score", "persona",
    "locale", "topic", "consent",
)  # fmt: skip


def working_frame(events: pl.DataFrame) -> pl.DataFrame:
    """An event frame (EVENT_SCHEMA) as a working frame: TEXTS are strings, `events` lists the event ids of a row.

    Sorted by time, then event id; events without a time come last.
    """
    return working_frame_of([events])


def working_frame_of(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """`working_frame` of a log in parts, which are taken from the list: its texts are in memory once, not twice."""
    packed = []
    while parts:
        packed.append(_packed(parts.pop(0)).get_columns())
    columns = [list(column) for column in zip(*packed, strict=True)]
    del packed
    keys = pl.DataFrame([pl.concat(column) for column in columns if column[0].name in ("time", "event_id")])
    order = keys.select(pl.arg_sort_by("time", "event_id", nulls_last=True, maintain_order=True)).to_series()
    # One column after the other: what is put in order, is in memory twice until it is done.
    return pl.DataFrame([pl.concat(columns.pop(0)).gather(order) for _ in range(len(columns))])


def _packed(events: pl.DataFrame) -> pl.DataFrame:
    clean = {name: pl.col(name).str.replace_all(f"[{TURN}{ROLE}]", " ") for name in ("response_a", "response_b")}
    return events.select(
        *_KEPT,
        pack(pl.col("prompt")).alias("prompt"),
        clean["response_a"].alias("answer_a"),
        clean["response_b"].alias("answer_b"),
        pl.col("corrected").str.replace_all(f"[{TURN}{ROLE}]", " "),
        pl.col("comment").str.replace_all(f"[{TURN}{ROLE}]", " ").alias(SAID),
        pl.concat_list("event_id").alias("events"),
    )


REST = ("event_id", "source", "shown_left", "seconds_taken", "surface", "reasons", "comment")
"""What a report needs of an event that no row is made of."""


def public_events(rest: pl.DataFrame, work: pl.DataFrame) -> pl.DataFrame:
    """The events in `work` as a report reads them: EVENT_SCHEMA, but prompts packed, and null what it does not read.

    `rest` has REST of the events as read. Comments and reasons are as people wrote them: whoever shows them redacts.
    """
    texts = work.select(*_KEPT, "prompt", "corrected", response_a="answer_a", response_b="answer_b")
    joined = rest.join(texts, on="event_id", how="inner", maintain_order="right")
    missing = [pl.lit(None, kind).alias(name) for name, kind in EVENT_SCHEMA.items() if name not in joined.columns]
    return joined.with_columns(missing).select(EVENT_SCHEMA.names())


def is_kind(kind: EventKind) -> pl.Expr:
    """True for events of a kind."""
    return pl.col("kind") == kind.value


def found_in_conversation() -> pl.Expr:
    """True for what feedback/corrections.py found."""
    return pl.col("kind").is_in([IN_CONVERSATION, JUDGED])


def normalised(text: pl.Expr) -> pl.Expr:
    """Lower case, letters and digits only, one space between words: what is left when only looks differ."""
    return text.str.to_lowercase().str.replace_all(r"[^\p{L}\p{N}]+", " ").str.strip_chars(" ")
