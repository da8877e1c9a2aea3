"""NVIDIA's HelpSteer2 (ratings from 0 to 4, one or several a row; `preference/` pairs) and HelpSteer3 (pairs).

Preferences run from -3 to 3, negative for the first answer; 0 is a tie of unknown quality.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec
from raylign.data.types import Message
from raylign.feedback.events import Choice, Event, EventKind
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Context, Format, Judgements, attempt, each_whole
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.score_table import LoggedValue
from raylign.feedback.importers.turns import turns_of
from raylign.feedback.importers.values import TIE, content_id, locale_of
from raylign.feedback.scores import Scale

_ASPECTS = ("correctness", "coherence", "complexity", "verbosity")
_MOST = 4
_STRONGEST = 3
_MARK = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_ROLES = {"User": "user", "Assistant": "assistant"}


class _Rated(msgspec.Struct):
    """A row of the main set; in `disagreements/` each aspect is a list, one number an annotator."""

    prompt: str
    response: str
    helpfulness: float | list[float]
    correctness: float | list[float] | None = None
    coherence: float | list[float] | None = None
    complexity: float | list[float] | None = None
    verbosity: float | list[float] | None = None


class _Preference(msgspec.Struct):
    """A row of HelpSteer2's `preference/`."""

    prompt: str
    response_1: str
    response_2: str
    preference_strength: int
    preference_statement: str | None = None


class _HelpSteer3(msgspec.Struct):
    """A row of HelpSteer3's preferences."""

    context: list[dict[str, object]]
    response1: str
    response2: str
    overall_preference: int
    domain: str | None = None
    language: str | None = None


def _is_rated(columns: Columns) -> bool:
    return {"prompt", "response", "helpfulness", "correctness"} <= set(columns)


def _is_preference(columns: Columns) -> bool:
    return {"prompt", "response_1", "response_2", "preference_strength"} <= set(columns)


def _is_helpsteer3(columns: Columns) -> bool:
    return {"context", "response1", "response2", "overall_preference"} <= set(columns)


def _ratings(row: Row, columns: Columns, context: Context) -> Judgements:
    rated = msgspec.convert(columns, _Rated)
    single = not isinstance(rated.helpfulness, list)
    given = rated.helpfulness if isinstance(rated.helpfulness, list) else [rated.helpfulness]
    prompt = _prompt(rated.prompt)

    def make(place: int) -> Event:
        """The rating at `place` of the row's list, or the row's only one."""
        texts = (rated.prompt, rated.response) if single else (rated.prompt, rated.response, f"{place}")
        return Event(
            event_id=content_id("helpsteer2", *texts),
            kind=EventKind.RATING,
            source=context.source,
            source_row=row.line,
            prompt=prompt,
            response_a=rated.response,
            turn=sum(turn.role == "assistant" for turn in prompt),
            rating=context.scores.judge(_logged_value(given[place])).rating,
            score="helpfulness",
            reasons=tuple(
                f"{name}={value:g}" for name in _ASPECTS if (value := _aspect(rated, name, place)) is not None
            ),
        )

    return [attempt(make, place) for place in range(len(given))]


def _logged_value(value: object) -> LoggedValue:
    return LoggedValue("helpfulness", value, Scale(0, _MOST))


def _scores(columns: Columns, context: Context) -> Iterable[LoggedValue]:
    given = columns["helpfulness"]
    return [_logged_value(value) for value in (given if isinstance(given, list) else [given])]


def _aspect(rated: _Rated, name: str, place: int) -> float | None:
    value = getattr(rated, name)
    if isinstance(value, list):
        return value[place] if place < len(value) else None
    return value


def _prompt(text: str) -> tuple[Message, ...]:
    """A question; or, with marks between turns, a conversation that begins with the user."""
    first, *rest = _MARK.split(text)
    turns = [Message("user", first)]
    turns += [Message(_ROLES[who], text) for who, text in zip(rest[::2], rest[1::2], strict=True)]
    if turns[-1].role == "assistant" and not turns[-1].content.strip():
        turns.pop()  # the mark that asks for the answer
    return tuple(turns)


def _preference(row: Row, columns: Columns, context: Context) -> list[Event]:
    pair = msgspec.convert(columns, _Preference)
    return [
        _pair(
            row,
            context,
            prompt=_prompt(pair.prompt),
            answers=(pair.response_1, pair.response_2),
            preference=pair.preference_strength,
            comment=pair.preference_statement,
        )
    ]


def _helpsteer3(row: Row, columns: Columns, context: Context) -> list[Event]:
    pair = msgspec.convert(columns, _HelpSteer3)
    return [
        _pair(
            row,
            context,
            prompt=turns_of(pair.context, "context"),
            answers=(pair.response1, pair.response2),
            preference=pair.overall_preference,
            topic=pair.domain,
            locale=locale_of(pair.language),
        )
    ]


def _pair(
    row: Row,
    context: Context,
    *,
    prompt: tuple[Message, ...],
    answers: tuple[str, str],
    preference: int,
    comment: str | None = None,
    topic: str | None = None,
    locale: str | None = None,
) -> Event:
    if not -_STRONGEST <= preference <= _STRONGEST:
        raise RowProblem(f"unknown choice: preference {preference}; expected -{_STRONGEST} to {_STRONGEST}")
    choice = Choice.SKIPPED if preference == 0 else Choice.A if preference < 0 else Choice.B
    return Event(
        event_id=content_id(context.source, *(turn.content for turn in prompt), *answers),
        kind=EventKind.SIDE_BY_SIDE,
        source=context.source,
        source_row=row.line,
        prompt=prompt,
        response_a=answers[0],
        response_b=answers[1],
        turn=sum(turn.role == "assistant" for turn in prompt),
        choice=choice,
        strength=abs(preference) / _STRONGEST if preference else None,
        reasons=() if preference else TIE,
        comment=comment,
        topic=topic,
        locale=locale,
    )


RATINGS = Format(
    name="helpsteer2",
    title="HelpSteer2 ratings",
    recognises=_is_rated,
    parse=each_whole(_ratings),
    ids_from_content=True,
    scores=_scores,
)
PREFERENCE = Format(
    name="helpsteer2_preference",
    title="HelpSteer2 preferences",
    recognises=_is_preference,
    parse=each_whole(_preference),
    ids_from_content=True,
)
HELPSTEER3 = Format(
    name="helpsteer3",
    title="HelpSteer3 preferences",
    recognises=_is_helpsteer3,
    parse=each_whole(_helpsteer3),
    ids_from_content=True,
)
