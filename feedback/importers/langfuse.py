"""Langfuse: a file of scores, and a file of the traces or observations they are on. API (camelCase) or blob export
(snake_case) field names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import msgspec
from raylign.feedback.events import Event, EventKind
from raylign.feedback.importers.beside import prompt_of
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Companion, Context, Format, each
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.score_table import LoggedValue
from raylign.feedback.importers.turns import answer_of
from raylign.feedback.importers.values import in_order, plain_value, time_of

_SEVERAL = "several outermost observations"
_CAMEL = re.compile(r"(?<=[a-z0-9])([A-Z])")


class _Score(msgspec.Struct):
    """The fields of a score that are read."""

    id: str
    name: str
    trace_id: str | None = None
    observation_id: str | None = None
    session_id: str | None = None
    value: float | bool | str | None = None
    string_value: str | None = None
    long_string_value: str | None = None
    data_type: str | None = None
    source: str | None = None
    comment: str | None = None
    author_user_id: str | None = None
    timestamp: object = None
    created_at: object = None
    updated_at: object = None


class _Trace(msgspec.Struct):
    """The fields of a trace or observation that are read."""

    input: object = None
    output: object = None
    session_id: str | None = None
    user_id: str | None = None
    version: str | None = None
    release: str | None = None
    model: str | None = None
    provided_model_name: str | None = None
    environment: str | None = None
    start_time: object = None
    end_time: object = None


def recognises(columns: Columns) -> bool:
    """A named value of a data type, on a trace."""
    names = set(_snake(columns))
    return {"name", "value", "data_type"} <= names and bool(names & {"trace_id", "session_id"})


def _read(row: Row, columns: Columns, context: Context) -> list[Event]:
    score = msgspec.convert(_snake(columns), _Score)
    if score.source == "EVAL":
        raise RowProblem("judged by a model, not by a person (source EVAL)")
    created = time_of(score.timestamp, "timestamp") or time_of(score.created_at, "createdAt")
    updated = time_of(score.updated_at, "updatedAt")
    in_order(time_of(score.created_at, "createdAt"), updated, "the score")
    trace = msgspec.convert(_snake(_about(score, context)), _Trace)
    in_order(time_of(trace.start_time, "startTime"), time_of(trace.end_time, "endTime"), "the observation")
    asked = prompt_of(trace.input, "input")
    base = Event(
        event_id=f"langfuse:{score.id}",
        kind=EventKind.THUMB,
        source=context.source,
        source_row=row.line,
        prompt=asked,
        response_a=answer_of(trace.output, "output", asked),
        conversation_id=score.session_id or trace.session_id,
        user_hash=context.hashed(trace.user_id),
        annotator_hash=context.hashed(score.author_user_id),
        time=created,
        updated=updated,
        model_a=trace.provided_model_name or trace.model,
        model_version=trace.version or trace.release,
        reasons=(score.name,),
        comment=score.comment,
        surface=trace.environment,
    )
    return [_judged(base, score, context)]


def _judged(base: Event, score: _Score, context: Context) -> Event:
    kind = (score.data_type or "").upper()
    if kind == "CORRECTION":
        corrected = score.value if isinstance(score.value, str) else score.string_value or score.long_string_value
        return replace(base, kind=EventKind.CORRECTION, corrected=corrected, reasons=())
    if kind == "TEXT":
        raise RowProblem("a text score says neither good nor bad")
    return context.scores.judge(LoggedValue(score.name, _value(score))).on(base, score.name)


def _value(score: _Score) -> object:
    """A category is its word, not its number; a yes or no is distinguished from the number 1."""
    words = score.string_value or score.long_string_value
    kind = (score.data_type or "").upper()
    if kind == "CATEGORICAL":
        return words
    if kind == "BOOLEAN" and isinstance(value := plain_value(score.value), float):
        return bool(value)
    return words if score.value in (None, "") else score.value


def _scores(columns: Columns, context: Context) -> Iterable[LoggedValue]:
    score = msgspec.convert(_snake(columns), _Score)
    if (score.data_type or "").upper() not in ("CORRECTION", "TEXT"):
        yield LoggedValue(score.name, _value(score))


def _about(score: _Score, context: Context) -> Columns:
    """What the score is on: the observation if it names one that is there, else the trace."""
    if score.observation_id and score.observation_id in context.companion:
        return context.companion[score.observation_id]
    found = context.look_up(score.trace_id, "trace")
    if _SEVERAL in found:
        raise RowProblem("the trace has several outermost observations with an answer; score the observation meant")
    return found


def _entries(columns: Columns) -> Iterable[tuple[object, Columns]]:
    """A trace by its id; an observation by its own, and when it is the outermost also by its trace's."""
    row = _snake(columns)
    outermost = row.get("trace_id") if not row.get("parent_observation_id") else None
    return (row.get("id"), columns), (outermost, columns)


def _one_of(first: Columns, later: Columns) -> Columns:
    """A trace goes before its observations; of several outermost observations only one may hold an answer."""
    traces = [row for row in (first, later) if _SEVERAL not in row and not _snake(row).get("trace_id")]
    if traces:
        return traces[0]
    if _SEVERAL in first or first.get("id") == later.get("id"):
        return first
    complete = [row for row in (first, later) if row.get("input") and row.get("output")]
    return {_SEVERAL: True} if len(complete) == 2 else (complete or [first])[0]


def _snake(columns: Columns) -> Columns:
    """Names as the blob export has them; an empty cell of a CSV export is no value."""
    return {_CAMEL.sub(r"_\1", name).lower(): None if value == "" else value for name, value in columns.items()}


FORMAT = Format(
    name="langfuse",
    title="Langfuse scores, with their traces or observations",
    recognises=recognises,
    parse=each(_read),
    companion=Companion("the exported traces or observations (id, input, output)", _entries, merge=_one_of),
    scores=_scores,
)
