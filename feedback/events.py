"""One event schema for everything people say about answers: side-by-side choices, thumbs, ratings, corrections.

`Event` is one event with types; `EVENT_SCHEMA` is the same as columns, for a million of them at once. Importers
(feedback/importers) make them from other tools' logs; everything after reads only these.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

import polars as pl
from raylign.data.types import FinishReason, Message


class EventKind(Enum):
    """What a person did."""

    SIDE_BY_SIDE = "side_by_side"  # saw two answers and chose
    THUMB = "thumb"  # up or down on one answer
    RATING = "rating"  # a number on one answer
    CORRECTION = "correction"  # wrote what the answer should have been


class Choice(Enum):
    """The outcome of a side-by-side. Sides are a and b as logged, whatever side of the screen they were on."""

    A = "a"
    B = "b"
    BOTH_GOOD = "both_good"
    BOTH_BAD = "both_bad"
    SKIPPED = "skipped"


class Side(Enum):
    """Which answer stood on the left."""

    A = "a"
    B = "b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing one person did about one answer, or two. None: not known, or not of this kind."""

    event_id: str  # unique in a log
    kind: EventKind
    source: str  # the importer's name: "native", "langfuse", ...
    source_row: int  # line or row of the file it came from, from 1
    # The turns up to and with the question; ends with a user (or tool) turn. Tools that were offered: a first turn of
    # role TOOLS; calls: feedback/turns.py.
    prompt: tuple[Message, ...]
    response_a: str  # the answer; for a correction the original, for a side-by-side side a; with calls: `said`
    response_b: str | None = None  # side b
    finish_reason_a: FinishReason | None = None  # why the model stopped: its own end, or cut at the token limit
    finish_reason_b: FinishReason | None = None  # rows made of a cut answer say so: no end token is learned after it
    conversation_id: str | None = None
    turn: int | None = None  # which answer of the conversation, from 0
    user_hash: str | None = None  # whose conversation it is, never the raw id (see `hash_user`)
    annotator_hash: str | None = None  # who judged, where that is another person
    time: datetime | None = None  # UTC
    updated: datetime | None = None  # when it was last changed, where the tool says so
    seconds_taken: float | None = None  # from seeing to judging
    model_a: str | None = None
    model_b: str | None = None
    model_version: str | None = None
    shown_left: Side | None = None
    choice: Choice | None = None
    strength: float | None = None  # of a choice, in (0, 1]: 1 is "much better"
    thumb: int | None = None  # +1 or -1
    rating: float | None = None  # in [0, 1]: importers scale by the tool's own range
    score: str | None = None  # the name of the score, where the tool has several
    corrected: str | None = None  # what the person wrote instead
    reasons: tuple[str, ...] = ()
    comment: str | None = None
    persona: str | None = None
    locale: str | None = None  # BCP 47, "en-GB"
    surface: str | None = None  # where in the product
    topic: str | None = None
    consent: bool | None = None  # False: never trained on


Column = type[pl.DataType] | pl.DataType
"""The type of a column."""

_TURNS = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))

_COLUMNS: dict[str, Column] = {
    "event_id": pl.String,
    "kind": pl.String,
    "source": pl.String,
    "source_row": pl.Int64,
    "prompt": _TURNS,
    "response_a": pl.String,
    "response_b": pl.String,
    "finish_reason_a": pl.String,
    "finish_reason_b": pl.String,
    "conversation_id": pl.String,
    "turn": pl.Int32,
    "user_hash": pl.String,
    "annotator_hash": pl.String,
    "time": pl.Datetime("us", "UTC"),
    "updated": pl.Datetime("us", "UTC"),
    "seconds_taken": pl.Float64,
    "model_a": pl.String,
    "model_b": pl.String,
    "model_version": pl.String,
    "shown_left": pl.String,
    "choice": pl.String,
    "strength": pl.Float64,
    "thumb": pl.Int8,
    "rating": pl.Float64,
    "score": pl.String,
    "corrected": pl.String,
    "reasons": pl.List(pl.String),
    "comment": pl.String,
    "persona": pl.String,
    "locale": pl.String,
    "surface": pl.String,
    "topic": pl.String,
    "consent": pl.Boolean,
}
EVENT_SCHEMA = pl.Schema(_COLUMNS)
"""The columns of an event frame, in this order. Enums are their values."""


def hash_user(raw: str, salt: str) -> str:
    """A user's id as logs and outputs carry it: the first 16 hex digits of BLAKE2b over salt and id."""
    return hashlib.blake2b(raw.encode(), key=salt.encode()[:64], digest_size=8).hexdigest()
