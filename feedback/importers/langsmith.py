"""LangSmith: a file of feedback, and a file of the runs it is about (prompts, answers, models, users).

A row of feedback is a correction, one half of a comparison (`comparative_experiment_id`; the other half is the row of
the same `feedback_group_id`), a thumb (score 0, 1, -1 or true/false, or a word) or a rating (score between 0 and 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import msgspec
from raylign.feedback.events import Choice, Event, EventKind
from raylign.feedback.importers.beside import prompt_of
from raylign.feedback.importers.calls import with_tools
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Companion, Context, Format, parsed
from raylign.feedback.importers.outcome import Parsed, RowProblem
from raylign.feedback.importers.score_table import LoggedValue
from raylign.feedback.importers.turns import answer_of, unpacked
from raylign.feedback.importers.values import TIE, in_order, plain_value, seconds_between, time_of

_OBJECTS = ("feedback_source", "correction", "value", "extra")


class _Source(msgspec.Struct):
    type: str | None = None
    user_id: str | int | None = None


class _Feedback(msgspec.Struct):
    """The fields of a feedback record that are read."""

    id: str
    key: str
    run_id: str | None = None
    score: object = None
    value: object = None
    comment: str | None = None
    correction: str | dict[str, object] | None = None
    created_at: object = None
    modified_at: object = None
    feedback_source: _Source | None = None
    comparative_experiment_id: str | None = None
    feedback_group_id: str | None = None


class _Run(msgspec.Struct):
    """The fields of a run that are read."""

    id: str
    inputs: object = None
    outputs: object = None
    start_time: object = None
    end_time: object = None
    session_id: str | None = None
    extra: dict[str, object] | None = None


def recognises(columns: Columns) -> bool:
    """A key and a score, about a run."""
    return {"run_id", "key", "score"} <= set(columns)


def parse(rows: Iterable[Row], context: Context) -> Iterator[Parsed]:
    """Row by row; the first half of a comparison waits for the second, or for the end of the file."""
    waiting: dict[str, tuple[Row, _Feedback]] = {}
    joined: list[int] = []

    def read(row: Row, columns: Columns, context: Context) -> list[Event | str]:
        feedback = _feedback(columns)
        if feedback.comparative_experiment_id is None or feedback.feedback_group_id is None:
            return [_single(row, feedback, context)]
        other = waiting.pop(feedback.feedback_group_id, None)
        if other is None:
            waiting[feedback.feedback_group_id] = (row, feedback)
            raise _Waits
        joined.append(other[0].line)
        return [_comparison(other[1], row, feedback, context)]

    for row in rows:
        joined.clear()
        try:
            yield parsed(row, context, read)
        except _Waits:
            continue
        for line in joined:
            yield Parsed(line)  # a row whose judgement is the later row's
    for group, (row, _) in waiting.items():
        reason = f"half a comparison: no other feedback of group `{group[:60]}`"
        yield Parsed(row.line, problems=(reason,), excerpt=row.excerpt)


class _Waits(Exception):
    """This row's judgement comes with a later row."""


def _single(row: Row, feedback: _Feedback, context: Context) -> Event:
    base = _base(row, feedback, context)
    if feedback.correction is not None:
        corrected = answer_of(feedback.correction, "correction")
        return replace(base, kind=EventKind.CORRECTION, corrected=corrected)
    return context.scores.judge(_logged_value(feedback)).on(base, feedback.key)


def _feedback(columns: Columns) -> _Feedback:
    """A record; of a CSV file the empty cells are no values, and objects stand in cells as text."""
    filled = {name: unpacked(value) if name in _OBJECTS else value for name, value in columns.items() if value != ""}
    return msgspec.convert(filled, _Feedback)


def _logged_value(feedback: _Feedback) -> LoggedValue:
    compares = feedback.comparative_experiment_id is not None and feedback.feedback_group_id is not None
    value = feedback.value if feedback.score is None else feedback.score
    return LoggedValue(feedback.key, value, compares=compares)


def _scores(columns: Columns, context: Context) -> Iterable[LoggedValue]:
    feedback = _feedback(columns)
    if feedback.correction is None:
        yield _logged_value(feedback)


def _comparison(first: _Feedback, row: Row, second: _Feedback, context: Context) -> Event:
    """Both halves as one event: side a is the run that came first in the file."""
    base, other = _base(row, first, context), _base(row, second, context)
    if base.prompt != other.prompt:
        raise RowProblem("the two runs compared were asked different things")
    if first.score is None or second.score is None:
        raise RowProblem("a comparison without scores")
    scores = _preferred(first), _preferred(second)
    tie = scores[0] == scores[1]
    choice = Choice.SKIPPED if tie else Choice.A if scores[0] > scores[1] else Choice.B
    return replace(
        base,
        event_id=min(base.event_id, other.event_id),  # exports list the halves in either order
        updated=max(filter(None, (base.updated, other.updated)), default=None),
        kind=EventKind.SIDE_BY_SIDE,
        response_b=other.response_a,
        model_b=other.model_a,
        choice=context.scores.side(first.key, choice),
        score=first.key,
        reasons=(first.key, *TIE) if tie else (first.key,),
    )


def _preferred(feedback: _Feedback) -> float:
    """The score of one side; LangSmith's higher one is the preferred."""
    value = plain_value(feedback.score)
    if value is None or isinstance(value, str):
        raise RowProblem("a comparison whose scores are no numbers")
    return float(value)


def _base(row: Row, feedback: _Feedback, context: Context) -> Event:
    """All but the judgement."""
    source = feedback.feedback_source or _Source()
    if source.type in ("model", "auto_eval"):
        raise RowProblem("judged by a model, not by a person")
    created = time_of(feedback.created_at, "created_at")
    updated = time_of(feedback.modified_at, "modified_at")
    in_order(created, updated, "the feedback")
    run = msgspec.convert(context.look_up(feedback.run_id, "run"), _Run)
    ended = time_of(run.end_time, "end_time")
    in_order(time_of(run.start_time, "start_time"), ended, "the run")
    about = (run.extra or {}).get("metadata")
    invoked = (run.extra or {}).get("invocation_params")
    offered = invoked.get("tools") if isinstance(invoked, Mapping) else None
    asked = with_tools(prompt_of(run.inputs, "inputs"), offered, "invocation_params.tools")
    metadata = partial(_text_in, about if isinstance(about, Mapping) else {})
    user = metadata("user_id", "user")
    judge = source.user_id
    return Event(
        event_id=f"langsmith:{feedback.id}",
        kind=EventKind.THUMB,
        source=context.source,
        source_row=row.line,
        prompt=asked,
        response_a=answer_of(run.outputs, "outputs", asked),
        conversation_id=metadata("thread_id", "conversation_id", "session_id"),
        user_hash=context.hashed(user if user is not None else judge),
        annotator_hash=context.hashed(judge) if user is not None and judge is not None and judge != user else None,
        time=created,
        updated=updated,
        seconds_taken=seconds_between(ended, created),
        model_a=metadata("ls_model_name", "model_name", "model"),
        model_version=metadata("revision_id", "version"),
        reasons=(feedback.key,),
        comment=feedback.comment,
        locale=metadata("locale"),
        persona=metadata("persona"),
        surface=metadata("surface"),
    )


def _text_in(metadata: Mapping[str, object], *names: str) -> str | None:
    found = next((metadata[name] for name in names if metadata.get(name)), None)
    return found if isinstance(found, str) else None


FORMAT = Format(
    name="langsmith",
    title="LangSmith feedback, with its runs",
    recognises=recognises,
    parse=parse,
    scores=_scores,
    companion=Companion(
        "the exported runs (id, inputs, outputs)", lambda run: ((run.get("id"), run), (run.get("run_id"), run))
    ),
)
