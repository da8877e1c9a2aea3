"""Label Studio: the JSON export of a project with a Pairwise or a Ranker tag.

An annotation with a Pairwise tag is one judgement; a ranking of k answers, the best first, is k-1 pairs of neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

import msgspec
from raylign.feedback.events import Choice, Event, EventKind, Side
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Context, Format, Judgements, attempt, each
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.pairs import question_in, text_in, two_answers_in
from raylign.feedback.importers.score_table import LoggedValue, Scores
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
    return [judged for annotation in task.annotations for judged in _judgements(row, task, annotation, context)]


def _judgements(row: Row, task: _Task, annotation: _Annotation, context: Context) -> Judgements:
    ranking = next((result for result in annotation.result if result.type == "ranker"), None)
    if ranking is None or annotation.was_cancelled:
        return [attempt(_event, row, task, annotation, context)]
    try:
        ranked = _ranked_texts(task, ranking)
    except RowProblem as problem:
        return [f"{problem}"]
    asked = ranking.from_name or "ranking"
    return [
        attempt(_neighbours, row, task, annotation, (number, asked, *pair), context)
        for number, pair in enumerate(pairwise(ranked), start=1)
    ]


def _ranked_texts(task: _Task, ranking: _Result) -> list[str]:
    """The answers of a ranking, the best first. Raises RowProblem: between items in buckets there is no order."""
    given = ranking.value.get("ranker")
    if isinstance(given, Mapping):
        buckets = [ids for ids in given.values() if isinstance(ids, list)]
        if len(buckets) != 1:
            raise RowProblem("items in buckets; only a ranking in one list says which of two is better")
        given = buckets[0]
    lists = [value for value in task.data.values() if isinstance(value, list) and _holds_items(value)]
    if not isinstance(given, list) or len(given) < 2 or len(lists) != 1:
        raise RowProblem("a ranking of fewer than two items of the one list in `data`")
    items = {f"{item['id']}": item for item in lists[0]}
    missing = [f"{name}" for name in given if f"{name}" not in items]
    if missing:
        raise RowProblem(f"a ranking of `{missing[0][:40]}`, which is not in `data`")
    return [text_in(items[f"{name}"], "body" if items[f"{name}"].get("body") else "html") for name in given]


def _holds_items(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) and "id" in v for v in value)


def _neighbours(
    row: Row, task: _Task, annotation: _Annotation, pair: tuple[int, str, str, str], context: Context
) -> Event:
    number, asked, better, worse = pair
    created, updated = time_of(annotation.created_at, "created_at"), time_of(annotation.updated_at, "updated_at")
    in_order(created, updated, "the annotation")
    return Event(
        event_id=f"label_studio:{task.id}:{annotation.id}:{number}",
        kind=EventKind.SIDE_BY_SIDE,
        source=context.source,
        source_row=row.line,
        prompt=question_in({name: value for name, value in task.data.items() if not _holds_items(value)}),
        response_a=better,
        response_b=worse,
        annotator_hash=context.hashed(_who(annotation.completed_by)),
        time=created,
        updated=updated,
        choice=context.scores.side(asked, Choice.A),
    )


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
    return scores.choice(LoggedValue(asked, picked, compares=True), label_choice_of)


def _picked(results: list[_Result]) -> tuple[str, object]:
    """What the question is called, and the answer to it."""
    pairwise = next((result for result in results if result.type == "pairwise" and result.value.get("selected")), None)
    if pairwise is not None:
        return pairwise.from_name or "pairwise", pairwise.value["selected"]
    labels = next((result for result in results if result.type == "choices"), None)
    given = labels.value.get("choices") if labels is not None else None
    name = labels.from_name if labels is not None else None
    return name or "choices", given[0] if isinstance(given, list) and given else None


def _scores(columns: Columns, context: Context) -> Iterable[LoggedValue]:
    for annotation in msgspec.convert(columns, _Task).annotations:
        for ranking in (result for result in annotation.result if result.type == "ranker"):
            yield LoggedValue(ranking.from_name or "ranking", "ranking", compares=True)
        asked, picked = _picked(annotation.result)
        if picked is not None:
            yield LoggedValue(asked, picked, compares=True)


def _who(completed_by: object) -> object:
    """An id, or an object with one."""
    if isinstance(completed_by, Mapping):
        return completed_by.get("id") or completed_by.get("email")
    return completed_by


FORMAT = Format(
    name="label_studio",
    title="Label Studio tasks with pairwise annotations or rankings",
    recognises=recognises,
    parse=each(_read),
    several=r"^(label_studio:[^:]*:[^:]*)(?::\d+)?$",
    scores=_scores,
)
