"""Label Studio: the JSON export of a project with a Pairwise tag. Every annotation of a task is one judgement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from raylign.feedback.events import Choice, Event, EventKind, Side
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Context, Format, Judgements, attempt, each
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.pairs import question_in, text_in, two_answers_in
from raylign.feedback.importers.score_table import Said, Scores
from raylign.feedback.importers.values import in_order, label_choice_of, time_of


class _Result(msgspec.Struct):
    type: str | None = None
    from_name: str | None = None  # what the question is called
    value: dict[str, object] = {}


class _Annotation(msgspec.Struct):
    """The fields of an annotation that are read."""

    id: int | str
    result: list[_Result] = []
    completed_by: object = None
    was_cancelled: bool | None = None
    lead_time: float | None = None  # seconds
    created_at: object = None
    updated_at: object = None


class _Task(msgspec.Struct):
    """The fields of a task that are read."""

    id: int | str
    data: dict[str, object]
    annotations: list[_Annotation] = []


def recognises(columns: Columns) -> bool:
    """Task data with annotations that hold results."""
    annotations = columns.get("annotations")
    return isinstance(columns.get("data"), Mapping) and isinstance(annotations, list)


def _read(row: Row, columns: Columns, context: Context) -> Judgements:
    task = msgspec.convert(columns, _Task)
    if not task.annotations:
        raise RowProblem("a task nobody has annotated")
    return [attempt(_event, row, task, annotation, context) for annotation in task.annotations]


def _event(row: Row, task: _Task, annotation: _Annotation, context: Context) -> Event:
    names = two_answers_in(task.data)
    if names is None:
        raise RowProblem("no two answers in `data` (answer1 and answer2, text1 and text2, left and right, ...)")
    created = time_of(annotation.created_at, "created_at")
    updated = time_of(annotation.updated_at, "updated_at")
    in_order(created, updated, "the annotation")
    model_a, model_b = (task.data.get(name) for name in ("model_a", "model_b"))
    return Event(
        event_id=f"label_studio:{task.id}:{annotation.id}",
        kind=EventKind.SIDE_BY_SIDE,
        source=context.source,
        source_row=row.line,
        prompt=question_in(task.data),
        response_a=text_in(task.data, names[0]),
        response_b=text_in(task.data, names[1]),
        annotator_hash=context.hashed(_who(annotation.completed_by)),
        time=created,
        updated=updated,
        seconds_taken=annotation.lead_time,
        model_a=model_a if isinstance(model_a, str) else None,
        model_b=model_b if isinstance(model_b, str) else None,
        shown_left=Side.A,  # the tag shows its first object on the left, always
        choice=Choice.SKIPPED if annotation.was_cancelled else _choice(annotation.result, context.scores),
    )


def _choice(results: list[_Result], scores: Scores) -> Choice:
    """The side picked, or the choice beside it ("both good") when no side was."""
    asked, picked = _picked(results)
    if picked is None:
        raise RowProblem("no side was picked")
    return scores.choice(Said(asked, picked, compares=True), label_choice_of)


def _picked(results: list[_Result]) -> tuple[str, object]:
    """What the question is called, and the answer to it."""
    pairwise = next((result for result in results if result.type == "pairwise" and result.value.get("selected")), None)
    if pairwise is not None:
        return pairwise.from_name or "pairwise", pairwise.value["selected"]
    labels = next((result for result in results if result.type == "choices"), None)
    given = labels.value.get("choices") if labels is not None else None
    name = labels.from_name if labels is not None else None
    return name or "choices", given[0] if isinstance(given, list) and given else None


def _scores(columns: Columns, context: Context) -> Iterable[Said]:
    for annotation in msgspec.convert(columns, _Task).annotations:
        asked, picked = _picked(annotation.result)
        if picked is not None:
            yield Said(asked, picked, compares=True)


def _who(completed_by: object) -> object:
    """An id, or an object with one."""
    if isinstance(completed_by, Mapping):
        return completed_by.get("id") or completed_by.get("email")
    return completed_by


FORMAT = Format(
    name="label_studio",
    title="Label Studio tasks with pairwise annotations",
    recognises=recognises,
    parse=each(_read),
    scores=_scores,
)
