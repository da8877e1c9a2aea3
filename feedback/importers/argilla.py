"""Argilla 1 and 2: records of files and the hub, nested or flattened. Every submitted response is a judgement.

A label on one answer is a thumb, on two a choice; a ranking of k answers is its k-1 neighbouring pairs; a rating needs
its scale, which the data set's `settings.json` holds (the companion); a text is a correction when its question's name
says so, else the comment on the same person's other responses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import msgspec
from raylign.feedback.events import Choice, Event, EventKind
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Companion, Context, Format, Judgements, attempt, each
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.pairs import answer_name_in, question_in, text_in, two_answers_in
from raylign.feedback.importers.values import TIE, choice_of, content_id, refuse_fault, scaled, thumb_of

_CORRECTION_WORDS = ("correct", "edit", "improve", "rewrite", "revis")
_FLAT = ".responses"


@dataclass(frozen=True, slots=True)
class _Response:
    """One person's answer to one question."""

    question: str
    value: object
    user: object
    status: object = None  # submitted, draft or discarded; the nested export does not say


class _Nested(msgspec.Struct):
    value: object
    user_id: str | None = None
    status: str | None = None


class _FirstResponse(msgspec.Struct):
    """One of Argilla 1."""

    values: dict[str, _Nested] | None = None
    user_id: str | None = None
    status: str | None = None


class _Option(msgspec.Struct):
    value: float | str


class _Settings(msgspec.Struct):
    type: str
    options: list[_Option] = []


class _Question(msgspec.Struct):
    """A question of settings.json."""

    name: str
    settings: _Settings


def recognises(columns: Columns) -> bool:
    """Fields and responses by question, or flattened columns named after a question."""
    if isinstance(columns.get("fields"), Mapping) and isinstance(columns.get("responses"), Mapping | list):
        return True
    return any(name.endswith(f"{_FLAT}.users") for name in columns) or any(
        f"{name}-suggestion" in columns and isinstance(value, list | Mapping) for name, value in columns.items()
    )


def _read(row: Row, columns: Columns, context: Context) -> Judgements:
    fields = columns.get("fields")
    fields = fields if isinstance(fields, Mapping) else columns
    responses = list(_responses(columns))
    comments = {r.user: r.value for r in responses if _is_comment(r)}
    found: list[Event | str] = []
    for response in responses:
        if not _is_comment(response):
            found += _events(row, columns, fields, response, comments.get(response.user), context)
    if not found:
        raise RowProblem("a record nobody has judged")
    return found


def _id(columns: Columns, fields: Columns) -> object:
    """The record's id, or one made of its texts."""
    given = columns.get("id") or columns.get("external_id")
    return given or content_id("record", *(text for text in fields.values() if isinstance(text, str)))


def _responses(columns: Columns) -> Iterator[_Response]:
    """All responses in order of question and person."""
    nested = columns.get("responses")
    if isinstance(nested, Mapping):
        for question, given in nested.items():
            for response in msgspec.convert(given, list[_Nested]):
                yield _Response(question, response.value, response.user_id, response.status)
        return
    if isinstance(nested, list):  # Argilla 1: a response holds one person's values by question
        for given in msgspec.convert(nested, list[_FirstResponse]):
            for question, one in (given.values or {}).items():
                yield _Response(question, one.value, given.user_id, given.status)
        return
    for name in columns:
        if f"{name}-suggestion" in columns:
            yield from _pushed(name, columns[name])
        elif name.endswith(_FLAT):
            yield from _flattened(name, columns)


def _flattened(name: str, columns: Columns) -> Iterator[_Response]:
    """One question of a flattened record: values, users and states, each a list."""
    values = columns[name]
    if not isinstance(values, list):
        return
    users, status = columns.get(f"{name}.users"), columns.get(f"{name}.status")
    if not (isinstance(users, list) and len(users) == len(values)):
        raise RowProblem(f"`{name}` and `{name}.users` are not of one length")
    states = status if isinstance(status, list) and len(status) == len(values) else [None] * len(values)
    for value, user, state in zip(values, users, states, strict=True):
        yield _Response(name.removesuffix(_FLAT), value, user, state)


def _pushed(question: str, values: object) -> Iterator[_Response]:
    """Argilla 1's data sets as pushed: a list of responses, or columns of them as parquet may keep it."""
    if isinstance(values, Mapping):
        values = [dict(zip(values, one, strict=False)) for one in zip(*values.values(), strict=False)]
    for given in msgspec.convert(values, list[_Nested] | None) or ():
        yield _Response(question, given.value, given.user_id, given.status)


def _is_comment(response: _Response) -> bool:
    return isinstance(response.value, str) and _says(response, "comment", "feedback", "explanation", "reason", "note")


def _says(response: _Response, *words: str) -> bool:
    return any(word in response.question.lower() for word in words)


def _events(
    row: Row, columns: Columns, fields: Columns, response: _Response, comment: object, context: Context
) -> Iterator[Event | str]:
    """One judgement; of a ranking one for each pair of neighbours."""
    if response.status not in (None, "submitted"):
        yield f"question `{response.question[:60]}`: {response.status}, not submitted"
        return
    pairs = _neighbours(response.value) or [(None, None)]
    for place, (better, worse) in enumerate(pairs):

        def make(better: object = better, worse: object = worse, place: int = place) -> Event:
            """The judgement of one pair of neighbours; raises what an unreadable answer raises."""
            judged = _judged(fields, response, better, worse, context)
            who = context.hashed(response.user)
            ends = "" if len(pairs) == 1 else f":{place}"
            return Event(
                event_id=f"argilla:{_id(columns, fields)}:{response.question}:{who}{ends}",
                source=context.source,
                source_row=row.line,
                prompt=question_in(fields),
                annotator_hash=who,
                comment=comment if isinstance(comment, str) else None,
                **judged,  # type: ignore[arg-type]
            )

        yield attempt(make)


def _judged(fields: Columns, response: _Response, better: object, worse: object, context: Context) -> dict[str, object]:
    """The fields of the event that depend on the kind of question."""
    value = response.value
    if not _says(response, "correction"):
        refuse_fault(response.question)
    if isinstance(value, list):
        if better is None:
            raise RowProblem(f"question `{response.question[:60]}`: a ranking without two answers of different rank")
        return {
            "kind": EventKind.SIDE_BY_SIDE,
            "response_a": text_in(fields, _ranked(better, fields)),
            "response_b": text_in(fields, _ranked(worse, fields)),
            "choice": Choice.A,
        }
    names, single = two_answers_in(fields), answer_name_in(fields)
    if names is not None and isinstance(value, str):
        tie = value.strip().lower() in TIE
        choice = Choice.SKIPPED if tie else _side(value, names)
        sides = {"response_a": text_in(fields, names[0]), "response_b": text_in(fields, names[1])}
        return {"kind": EventKind.SIDE_BY_SIDE, "choice": choice, "reasons": TIE if tie else (), **sides}
    if single is None:
        raise RowProblem(f"question `{response.question[:60]}`: which answer it is about is not clear")
    answer = {"response_a": text_in(fields, single), "reasons": (response.question,)}
    if isinstance(value, str) and _says(response, *_CORRECTION_WORDS) and thumb_of(value) is None:
        return {"kind": EventKind.CORRECTION, "corrected": value, **answer}
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = _scale(response.question, context)
        return {"kind": EventKind.RATING, "rating": scaled(value, low, high, response.question), **answer}
    thumb = thumb_of(value)
    if thumb is None:
        raise RowProblem(f"question `{response.question[:60]}`: `{str(value)[:40]}` is no word for good or bad")
    return {"kind": EventKind.THUMB, "thumb": thumb, **answer}


def _neighbours(ranking: object) -> list[tuple[object, object]]:
    """Neighbours in rank, the better first; answers of one rank are a tie and no pair."""
    if not isinstance(ranking, list):
        return []
    if not all(isinstance(one, Mapping) and isinstance(one.get("rank"), int) for one in ranking):
        return list(pairwise(ranking))
    ranked = sorted(ranking, key=lambda one: one["rank"])
    return [(better, worse) for better, worse in pairwise(ranked) if better["rank"] < worse["rank"]]


def _ranked(value: object, fields: Columns) -> str:
    """Ranked answers are named after their fields, in Argilla 1 with a dash for each underscore; some versions wrap."""
    name = f"{value.get('value')}" if isinstance(value, Mapping) else f"{value}"
    return name if name in fields else name.replace("-", "_")


def _side(value: str, names: tuple[str, str]) -> Choice:
    choice = {names[0]: Choice.A, names[1]: Choice.B}.get(value) or choice_of(value)
    if choice is None:
        raise RowProblem(f"unknown choice `{value[:40]}`")
    return choice


def _scale(question: str, context: Context) -> tuple[float, float]:
    settings = context.companion.get(question)
    if settings is None:
        raise RowProblem(
            f"question `{question[:60]}` is a rating, and records do not say on which scale; "
            "give the data set's settings.json as the companion file"
        )
    options = [option.value for option in msgspec.convert(settings, _Question).settings.options]
    numbers = [float(option) for option in options if not isinstance(option, str)]
    if len(numbers) < 2:
        raise RowProblem(f"settings.json gives question `{question[:60]}` no scale")
    return min(numbers), max(numbers)


def _questions(settings: Columns) -> Iterable[tuple[object, Columns]]:
    questions = settings.get("questions")
    found = [question for question in questions if isinstance(question, Mapping)] if isinstance(questions, list) else []
    return [(question.get("name"), question) for question in found]


FORMAT = Format(
    name="argilla",
    title="Argilla records",
    recognises=recognises,
    parse=each(_read),
    companion=Companion("the data set's settings.json", _questions, required=False),
)
