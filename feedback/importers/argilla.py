"""Argilla 1 and 2: records of files and the hub, nested or flattened. Every submitted response is a judgement.

A label on one answer is a thumb, on two a choice; a ranking of k answers is its k-1 neighbouring pairs; a rating needs
its scale, which the data set's `settings.json` holds (the companion); a text is a correction when its question's name
says so, else the comment on the same person's other responses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec
from raylign.feedback.events import Choice, Event, EventKind
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Companion, Context, Format, Judgements, attempt, each
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.pairs import answer_name_in, question_in, text_in, two_answers_in
from raylign.feedback.importers.score_table import LoggedValue
from raylign.feedback.importers.values import (
    TIE,
    content_id,
    is_equal,
    label_choice_of,
    locale_of,
    plain_value,
    says_good,
)
from raylign.feedback.scores import Scale

_CORRECTIONS = frozenset(
    ("correct", "correction", "corrections", "corrected", "edit", "edits", "edited", "improve", "improved", "rewrite",
     "improvement", "rewritten", "revise", "revised", "revision")
)  # fmt: skip
_COMMENTS = frozenset(
    ("comment", "comments", "explanation", "explain", "reason", "reasons", "note", "notes", "remarks")
)
_RANKINGS = frozenset(
    ("rank", "ranks", "ranked", "ranking", "rankings", "order", "ordering", "preference", "preferences")
)
_MODELS = (
    ("model_a", "model_A", "model_1", "model1", "model-1"),
    ("model_b", "model_B", "model_2", "model2", "model-2"),
)
_LOCALES = ("locale", "lang", "language")
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
    comments = {r.user: r.value for r in responses if _is_comment(r, context)}
    found: list[Event | str] = []
    for response in responses:
        if not _is_comment(response, context):
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


def _is_comment(response: _Response, context: Context) -> bool:
    """A text beside the judgement. A label of a question called "user-feedback" is no comment but the judgement."""
    if not isinstance(response.value, str):
        return False
    kind = _kind(response.question, context)
    if kind:
        return kind == "text" and not _says(response, _CORRECTIONS)
    if _says(response, {"feedback"}):
        value = plain_value(response.value)
        return isinstance(value, str) and says_good(value) is None and len(value.split()) > 1
    return _says(response, _COMMENTS)


def _says(response: _Response, words: frozenset[str] | set[str]) -> bool:
    """Whether one of the words is in the question's name, as a word: "correctness" is no correction."""
    return not words.isdisjoint(re.split(r"[^a-z]+", response.question.lower()))


def _kind(question: str, context: Context) -> str:
    """The type of a question where settings.json is there: text, label_selection, ranking, rating, ..."""
    settings = context.companion.get(question)
    return "" if settings is None else msgspec.convert(settings, _Question).settings.type


def _events(
    row: Row, columns: Columns, fields: Columns, response: _Response, comment: object, context: Context
) -> Iterator[Event | str]:
    """One judgement; of a ranking one for each pair of neighbours."""
    if response.status not in (None, "submitted"):
        yield f"question `{response.question[:60]}`: {response.status}, not submitted"
        return
    pairs: list[_Pair | None] = [None]
    if isinstance(response.value, list):
        try:
            pairs = list(_ranked_pairs(response, context))
        except RowProblem as problem:
            yield f"{problem}"
            return
    for place, pair in enumerate(pairs):

        def make(pair: _Pair | None = pair, place: int = place) -> Event:
            """The judgement of one pair of neighbours; raises what an unreadable answer raises."""
            judged = _judged(fields, response, context) if pair is None else _ranked(fields, response, pair, context)
            who = context.hashed(response.user)
            ends = "" if len(pairs) == 1 else f":{place}"
            return Event(
                event_id=f"argilla:{_id(columns, fields)}:{response.question}:{who}{ends}",
                source=context.source,
                source_row=row.line,
                prompt=question_in(fields),
                annotator_hash=who,
                score=response.question,
                model_a=_about(columns, _MODELS[0]) if "response_b" in judged else None,
                model_b=_about(columns, _MODELS[1]) if "response_b" in judged else None,
                locale=locale_of(_about(columns, _LOCALES)),
                comment=comment if isinstance(comment, str) else None,
                **judged,  # type: ignore[arg-type]
            )

        yield attempt(make)


def _judged(fields: Columns, response: _Response, context: Context) -> dict[str, object]:
    """The fields of the event that depend on the kind of question."""
    value = response.value
    names, single = two_answers_in(fields), answer_name_in(fields)
    if names is not None and isinstance(value, str):
        choice = _side(response.question, value, names, context)
        sides = {"response_a": text_in(fields, names[0]), "response_b": text_in(fields, names[1])}
        tie = choice is Choice.SKIPPED and is_equal(value)
        return {"kind": EventKind.SIDE_BY_SIDE, "choice": choice, "reasons": TIE if tie else (), **sides}
    if single is None:
        raise RowProblem(f"question `{response.question[:60]}`: which answer it is about is not clear")
    answer = {"response_a": text_in(fields, single), "reasons": (response.question,)}
    if isinstance(value, str) and _is_correction(response, context):
        return {"kind": EventKind.CORRECTION, "corrected": value, **answer}
    verdict = context.scores.judge(_logged_value(response, context))
    return {"kind": verdict.kind, "thumb": verdict.thumb, "rating": verdict.rating, **answer}


def _is_correction(response: _Response, context: Context) -> bool:
    """A text that stands for the answer; a label like "partially correct" is a judgement."""
    value, kind = plain_value(response.value), _kind(response.question, context)
    if not isinstance(value, str) or says_good(value) is not None or kind not in ("", "text"):
        return False
    if kind == "text" or _says(response, _CORRECTIONS - {"correct"}):
        return _says(response, _CORRECTIONS)
    return _says(response, {"correct"}) and len(value.split()) > 4


def _logged_value(response: _Response, context: Context) -> LoggedValue:
    if isinstance(response.value, int | float) and not isinstance(response.value, bool):
        scale = _scale(response.question, context)
        hint = "" if scale else "records do not hold it: give the data set's settings.json as the companion file"
        return LoggedValue(response.question, response.value, scale, hint=hint)
    return LoggedValue(response.question, response.value)


def _scores(columns: Columns, context: Context) -> Iterable[LoggedValue]:
    fields = columns.get("fields")
    compares = two_answers_in(fields if isinstance(fields, Mapping) else columns) is not None
    for response in _responses(columns):
        if isinstance(response.value, list):
            yield LoggedValue(response.question, "ranking", compares=True)
        elif isinstance(response.value, str) and compares and not _is_comment(response, context):
            yield LoggedValue(response.question, response.value, compares=True)
        elif not _is_comment(response, context) and not _is_correction(response, context):
            yield _logged_value(response, context)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two neighbours of a ranking: names of fields."""

    better: str
    worse: str


def _ranked_pairs(response: _Response, context: Context) -> Iterator[_Pair]:
    """Neighbours, the best first: by the ranks where they stand beside the names, else in the order of the list.

    Answers of one rank are a tie and no pair. Raises RowProblem for a list that need not be a ranking: several labels
    may be ticked too.
    """
    entries: list[object] = response.value if isinstance(response.value, list) else []
    if len(entries) < 2:
        raise RowProblem(f"question `{response.question[:60]}`: a ranking of fewer than two answers")
    ranks = [entry.get("rank") for entry in entries if isinstance(entry, Mapping) and "rank" in entry]
    names = [f"{entry.get('value')}" if isinstance(entry, Mapping) else f"{entry}" for entry in entries]
    if not ranks:
        if _kind(response.question, context) != "ranking" and not _says(response, _RANKINGS):
            raise RowProblem(
                f"question `{response.question[:60]}`: a list that may be a ranking or several labels; "
                "give the data set's settings.json as the companion file"
            )
        yield from (_Pair(better, worse) for better, worse in pairwise(names))
        return
    whole = [rank for rank in ranks if isinstance(rank, int)]
    if len(whole) != len(entries):
        raise RowProblem(f"question `{response.question[:60]}`: a ranking with answers that have no rank")
    placed = sorted(zip(whole, names, strict=True))
    if len(set(whole)) < 2:
        raise RowProblem(f"question `{response.question[:60]}`: a ranking without two answers of different rank")
    yield from (_Pair(name, later) for (first, name), (second, later) in pairwise(placed) if first < second)


def _ranked(fields: Columns, response: _Response, pair: _Pair, context: Context) -> dict[str, object]:
    return {
        "kind": EventKind.SIDE_BY_SIDE,
        "response_a": text_in(fields, _field(pair.better, fields)),
        "response_b": text_in(fields, _field(pair.worse, fields)),
        "choice": context.scores.side(response.question, Choice.A),
    }


def _field(name: str, fields: Columns) -> str:
    """Ranked answers are named after their fields, in Argilla 1 with a dash for each underscore."""
    return name if name in fields else name.replace("-", "_")


def _side(question: str, value: str, names: tuple[str, str], context: Context) -> Choice:
    if is_equal(value):
        return Choice.SKIPPED
    by_name = {names[0].lower(): Choice.A, names[1].lower(): Choice.B}.get(value.strip().lower())
    if by_name is not None:
        return context.scores.side(question, by_name)
    return context.scores.choice(LoggedValue(question, value, compares=True), label_choice_of)


def _about(columns: Columns, names: Sequence[str]) -> str | None:
    """What the record says under one of these names, beside its fields or in its metadata."""
    places = [
        place for place in (columns, columns.get("fields"), columns.get("metadata")) if isinstance(place, Mapping)
    ]
    found = (place[name] for place in places for name in names if isinstance(place.get(name), str) and place[name])
    return next(found, None)


def _scale(question: str, context: Context) -> Scale | None:
    """Of a rating, from settings.json. Raises RowProblem when it has none."""
    settings = context.companion.get(question)
    if settings is None:
        return None
    options = [option.value for option in msgspec.convert(settings, _Question).settings.options]
    numbers = [float(option) for option in options if not isinstance(option, str)]
    if len(numbers) < 2:
        raise RowProblem(f"settings.json gives question `{question[:60]}` no scale")
    return Scale(min(numbers), max(numbers))


def _questions(settings: Columns) -> Iterable[tuple[object, Columns]]:
    questions = settings.get("questions")
    found = [question for question in questions if isinstance(question, Mapping)] if isinstance(questions, list) else []
    return [(question.get("name"), question) for question in found]


FORMAT = Format(
    name="argilla",
    title="Argilla records",
    recognises=recognises,
    parse=each(_read),
    several=r"^(.*:(?:[0-9a-f]{16}|None))(?::\d+)?$",
    scores=_scores,
    companion=Companion("the data set's settings.json", _questions, required=False),
)
