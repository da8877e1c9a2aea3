"""Events as columns, a chunk at a time, and what must hold for every one of them, whatever tool it came from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import Enum
from typing import Protocol

import polars as pl
import pyarrow as pa
from raylign.data.rows import ROLES
from raylign.feedback.events import EVENT_SCHEMA, Choice, EventKind
from raylign.feedback.turns import FIELDS, TOOLS, plain

EARLIEST = datetime.fromisoformat("2015-01-01T00:00:00+00:00")
"""No assistant wrote answers before: a time before it is a wrong unit or an unset clock."""

_CLOCK_SKEW = timedelta(days=1)
_PLAIN = [name for name in EVENT_SCHEMA if name not in ("prompt", "reasons")]
_ENUMS = ("kind", "choice", "shown_left", "finish_reason_a", "finish_reason_b")
_WRITTEN = ("response_a", "response_b", "corrected", "comment", "persona", "topic", "locale")
"""What is redacted: FIELDS in it would be read as the beginning of fields."""
_TURN = pa.struct([("role", pa.string()), ("content", pa.string())])


class _Turn(Protocol):
    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str: ...
    @property
    def extra(self) -> str: ...


def frame_of(events: Sequence[object]) -> pl.DataFrame:
    """EVENT_SCHEMA columns of objects with an Event's attributes. No string may hold half a surrogate pair."""
    columns: dict[str, pa.Array | pl.Series] = {}
    for name in _PLAIN:
        values = [getattr(event, name) for event in events]
        if name in _ENUMS:
            values = [value.value if isinstance(value, Enum) else value for value in values]
        if name in _WRITTEN:
            values = [plain(value) if isinstance(value, str) else value for value in values]
        columns[name] = pl.Series(name, values, dtype=EVENT_SCHEMA[name], strict=True)
    columns["prompt"] = _prompt_column([event.prompt for event in events])  # type: ignore[attr-defined]
    columns["reasons"] = pl.Series("reasons", [list(event.reasons) for event in events], dtype=EVENT_SCHEMA["reasons"])  # type: ignore[attr-defined]
    return pl.DataFrame(columns).select(EVENT_SCHEMA.names())


def _prompt_column(prompts: Sequence[Sequence[_Turn]]) -> pl.Series:
    """Flat arrays and offsets: ten times faster than a list of lists of dicts."""
    offsets = [0]
    for turns in prompts:
        offsets.append(offsets[-1] + len(turns))
    roles = pa.array([turn.role for turns in prompts for turn in turns], type=pa.string())
    contents = pa.array([_words(turn) for turns in prompts for turn in turns], type=pa.string())
    turns = pa.StructArray.from_arrays([roles, contents], fields=list(_TURN))
    array = pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), turns)
    return pl.Series("prompt", array, dtype=EVENT_SCHEMA["prompt"])


def _words(turn: _Turn) -> str | None:
    """A turn's content as the frame has it; it may be missing, which is told by `problems_of`."""
    if turn.extra:
        return plain(turn.content) + FIELDS + turn.extra
    return plain(turn.content) if isinstance(turn.content, str) else turn.content


def problems_of(events: pl.DataFrame, now: datetime) -> pl.Series:
    """For each event the first reason why it cannot be used, or null. `now` bounds its time."""
    reason = pl.coalesce(*(pl.when(broken).then(words) for broken, words in _rules(now)), pl.lit(None, pl.String))
    return events.select(reason.alias("reason")).to_series()


def _rules(now: datetime) -> list[tuple[pl.Expr, pl.Expr]]:
    """What is wrong, and the sentence saying so, by importance."""
    col, lit = pl.col, pl.lit
    roles = (
        col("prompt").list.eval(pl.element().struct.field("role").is_in([*ROLES, TOOLS]).fill_null(False)).list.all()
    )
    contents = col("prompt").list.eval(pl.element().struct.field("content").is_null()).list.any()
    last = col("prompt").list.last()

    def is_kind(kind: EventKind) -> pl.Expr:
        return col("kind") == kind.value

    def blank(name: str) -> pl.Expr:
        return ~col(name).str.contains(r"\S").fill_null(False)

    def outside(name: str, low: float, high: float) -> pl.Expr:
        return col(name).is_not_null() & ~col(name).is_between(low, high).fill_null(False)

    choices, kinds = [c.value for c in Choice], [k.value for k in EventKind]
    return [
        (blank("event_id"), lit("`event_id` is empty")),
        (col("kind").is_null(), lit("no `kind`")),
        (~col("kind").is_in(kinds), pl.format("unknown kind `{}`", col("kind").str.head(40))),
        (col("prompt").list.len().fill_null(0) == 0, lit("the prompt has no turn")),
        (~roles, lit(f"a turn of the prompt has an unknown role; expected one of {', '.join(ROLES)}")),
        (contents, lit("a turn of the prompt has no text")),
        (
            ~last.struct.field("role").is_in(["user", "tool"]),
            pl.format(
                "the prompt ends with a turn of the {}, so there is nothing to answer", last.struct.field("role")
            ),
        ),
        (~last.struct.field("content").str.contains(r"\S"), lit("the question is empty")),
        (blank("response_a"), lit("`response_a` is empty")),
        (is_kind(EventKind.SIDE_BY_SIDE) & blank("response_b"), lit("a side-by-side without a second answer")),
        (is_kind(EventKind.SIDE_BY_SIDE) & col("choice").is_null(), lit("a side-by-side without a choice")),
        (is_kind(EventKind.THUMB) & col("thumb").is_null(), lit("a thumb without a direction")),
        (is_kind(EventKind.RATING) & col("rating").is_null(), lit("a rating without a number")),
        (is_kind(EventKind.CORRECTION) & col("corrected").is_null(), lit("a correction without a text")),
        (
            col("choice").is_not_null() & ~col("choice").is_in(choices),
            pl.format("unknown choice `{}`", col("choice").str.head(40)),
        ),
        (
            col("shown_left").is_not_null() & ~col("shown_left").is_in(["a", "b"]),
            pl.format("`shown_left` is `{}`; expected a or b", col("shown_left").str.head(40)),
        ),
        (col("thumb").is_not_null() & (col("thumb").abs() != 1), lit("`thumb` is neither 1 nor -1")),
        (outside("rating", 0, 1), pl.format("`rating` is {}; expected 0 to 1", col("rating"))),
        (
            outside("strength", 0, 1) | (col("strength") <= 0),
            pl.format("`strength` is {}; expected above 0 and at most 1", col("strength")),
        ),
        (col("turn") < 0, lit("`turn` is below 0")),
        (col("time") < EARLIEST, pl.format("impossible time {}: before 2015", _as_text("time"))),
        (col("time") > now + _CLOCK_SKEW, pl.format("impossible time {}: in the future", _as_text("time"))),
        (col("seconds_taken") < 0, pl.format("it ends before it starts: {} seconds", col("seconds_taken"))),
        (col("seconds_taken").is_nan() | col("seconds_taken").is_infinite(), lit("`seconds_taken` is no number")),
    ]


def _as_text(name: str) -> pl.Expr:
    return pl.col(name).dt.strftime("%Y-%m-%d %H:%M:%S")
