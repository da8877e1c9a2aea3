"""One's own columns, by a mapping file (YAML or JSON): our field -> where it stands in their row.

source: our-app
fields:
  event_id: vote_id                 # a column
  prompt: request.messages          # inside objects; text or a list of turns
  response_a: answers.0.text        # inside lists
  choice: {column: winner, values: {left: a, right: b, tie: both_good}}
  rating: {column: stars, scale: [1, 5]}   # of a fault (toxicity) with good: low
  surface: {value: web}             # the same for every row
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import yaml
from raylign.conf.errors import DataError
from raylign.conf.yaml_text import load_yaml, read_yaml_text
from raylign.feedback.events import Choice, Event, EventKind, Side
from raylign.feedback.importers.beside import with_history
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Context, Format, each
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.score_table import LoggedValue, Scores
from raylign.feedback.importers.turns import turns_of, unpacked
from raylign.feedback.importers.values import (
    choice_of,
    content_id,
    finish_of,
    locale_of,
    number_of,
    plain_value,
    says_good,
    scaled,
    seconds_between,
    thumb_of,
    time_of,
)
from raylign.feedback.scores import Good, Scale

_TEXT: tuple[str, ...] = (
    "response_b",
    "conversation_id",
    "model_a",
    "model_b",
    "model_version",
    "corrected",
    "comment",
    "persona",
)
_TEXT += ("surface", "topic")
FIELDS: tuple[str, ...] = (
    "event_id",
    "kind",
    "prompt",
    "system",
    "history",
    "response_a",
    *_TEXT,
    "turn",
    "user_id",
    "annotator_id",
    "time",
    "updated",
    "shown_at",
)
FIELDS += ("seconds_taken", "shown_left", "choice", "strength", "thumb", "rating", "reasons", "locale", "consent")
FIELDS += ("finish_reason_a", "finish_reason_b")
"""What a mapping may name. `system` and `history` go before the question; `shown_at` is when the answers were shown;
people's ids are hashed."""

_JUDGEMENTS = ("choice", "corrected", "thumb", "rating")
_KINDS = dict(zip(_JUDGEMENTS, (EventKind.SIDE_BY_SIDE, EventKind.CORRECTION, EventKind.THUMB, EventKind.RATING)))  # noqa: B905
_OPTIONS = {"column", "value", "values", "scale", "good"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a field comes from: a column path with words for its values, or one value for all rows."""

    column: str = ""
    constant: object = None
    values: Mapping[str, object] | None = None
    scale: Scale | None = None
    good: Good | None = None  # of a rating or thumb: which end is good, where the column's name does not say

    def of(self, columns: Columns) -> object:
        """The value in this row; None where it is not there or empty. Raises RowProblem for a word not mapped."""
        if not self.column:
            return self.constant
        value = at_path(columns, self.column)
        if value is None or value == "":
            return None
        if self.values is None:
            return value
        word = _word(value)
        if word not in self.values:
            raise RowProblem(f"`{self.column}` is `{word[:40]}`, which the mapping gives no meaning")
        return self.values[word]


def at_path(columns: object, path: str) -> object:
    """`a.b.0.c` inside objects and lists; a column with dots in its name goes first. None where it leads nowhere."""
    if isinstance(columns, Mapping) and path in columns:
        return columns[path]
    value = columns
    for step in path.split("."):
        value = unpacked(value)
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isascii() and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def mapped_format(path: Path) -> Format:
    """The format a mapping file describes. Raises DataError with all that is wrong with it."""
    places, source = _load(path)

    def read(row: Row, columns: Columns, context: Context) -> list[Event]:
        return [_event(row, columns, context, places, source)]

    return Format(
        name="mapping",
        title=f"columns as {path.name} maps them",
        recognises=lambda columns: False,
        parse=each(read),
        ids_from_content="event_id" not in places,
        scores=lambda columns, context: _scores(columns, places),
    )


def _load(path: Path) -> tuple[dict[str, Place], str]:
    try:
        content = load_yaml(read_yaml_text(path))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"mapping {path}: cannot be read ({' '.join(str(error).split())[:200]}).") from error
    fields = content.get("fields") if isinstance(content, dict) else None
    if not isinstance(fields, dict) or not fields:
        raise DataError(f"mapping {path}: expected `fields:` with our field names and your columns below it.")
    problems = [f"mapping {path}: unknown key `{key}`; expected source and fields." for key in content]
    problems = [p for p, key in zip(problems, content, strict=True) if key not in ("source", "fields")]
    places: dict[str, Place] = {}
    for name, spec in fields.items():
        if name not in FIELDS:
            near = get_close_matches(f"{name}", FIELDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(FIELDS)}."
            problems.append(f"mapping {path}: fields.{name}: no such field; {hint}")
            continue
        try:
            places[name] = _place(spec)
        except ValueError as error:
            problems.append(f"mapping {path}: fields.{name}: {error}.")
    problems += [
        f"mapping {path}: fields.{name} is missing." for name in ("prompt", "response_a") if name not in fields
    ]
    if not set(fields) & {*_JUDGEMENTS}:
        problems.append(f"mapping {path}: nothing says what people thought; map one of {', '.join(_JUDGEMENTS)}.")
    if problems:
        raise DataError(problems)
    return places, f"{content.get('source', 'mapping')}"


def _place(spec: object) -> Place:
    if isinstance(spec, str) and spec:
        return Place(spec)
    if not isinstance(spec, dict) or set(spec) - _OPTIONS:
        raise ValueError(f"expected a column, or some of {', '.join(sorted(_OPTIONS))}; it is {spec!r}"[:200])
    if ("column" in spec) == ("value" in spec):
        raise ValueError("give either a column or a value")
    values, scale = spec.get("values"), spec.get("scale")
    if values is not None and not isinstance(values, dict):
        raise ValueError("`values` must say for each of your words which of ours it is")
    if scale is not None:
        ends = scale if isinstance(scale, list) and len(scale) == 2 else [0, 0]
        if not all(isinstance(end, int | float) for end in ends) or not ends[0] < ends[1]:
            raise ValueError("`scale` must be [lowest, highest]")
        scale = Scale(float(ends[0]), float(ends[1]))
    good = spec.get("good")
    if good not in (None, "high", "low"):
        raise ValueError("`good` must be high or low")
    words = None if values is None else {_word(key): value for key, value in values.items()}
    return Place(f"{spec.get('column', '')}", spec.get("value"), words, scale, None if good is None else Good(good))


def _word(value: object) -> str:
    return f"{value}".lower() if isinstance(value, bool) else f"{value}"


def _event(row: Row, columns: Columns, context: Context, places: Mapping[str, Place], source: str) -> Event:
    found = {name: place.of(columns) for name, place in places.items()}
    text = {name: _text(found.get(name), name) for name in _TEXT}
    asked = {name: found[name] for name in ("prompt", "system", "history") if found.get(name) is not None}
    prompt = with_history(asked, "prompt", "row") if "prompt" in asked else turns_of(None, "prompt")
    response = _text(found.get("response_a"), "response_a") or ""
    read = _Read(found, places, context.scores)
    choice, thumb, rating = read.choice("choice"), read.thumb(), read.rating("rating")
    time, shown_at = time_of(found.get("time")), time_of(found.get("shown_at"), "shown_at")
    seconds = found.get("seconds_taken")
    taken = seconds_between(shown_at, time) if seconds is None else number_of(seconds, "seconds_taken")
    given_id = found.get("event_id")
    if "event_id" in places and given_id is None:
        raise RowProblem("`event_id` is empty")
    parts = (*(turn.content for turn in prompt), response, *(f"{found.get(name)}" for name in _JUDGEMENTS))
    turn, left = found.get("turn"), read.choice("shown_left")
    return Event(
        event_id=content_id(source, *parts) if given_id is None else f"{source}:{_text(given_id, 'event_id')}",
        kind=_kind(found),
        source=source,
        source_row=row.line,
        prompt=prompt,
        response_a=response,
        turn=None if turn is None else _whole(turn, "turn"),
        user_hash=context.hashed(found.get("user_id")),
        annotator_hash=context.hashed(found.get("annotator_id")),
        time=time,
        updated=time_of(found.get("updated"), "updated"),
        seconds_taken=taken,
        finish_reason_a=finish_of(found.get("finish_reason_a")),
        finish_reason_b=finish_of(found.get("finish_reason_b")),
        shown_left=None if left is None else _side(left, found["shown_left"]),
        choice=choice,
        strength=read.rating("strength"),
        thumb=thumb,
        rating=rating,
        reasons=_reasons(found.get("reasons")),
        locale=locale_of(found.get("locale")),
        consent=_flag(found.get("consent")),
        **text,
    )


def _kind(found: Mapping[str, object]) -> EventKind:
    given = found.get("kind")
    if given is not None:
        try:
            return EventKind(given)
        except ValueError:
            raise RowProblem(f"unknown kind `{str(given)[:40]}`") from None
    kind = next((_KINDS[name] for name in _JUDGEMENTS if found.get(name) is not None), None)
    if kind is None:
        raise RowProblem(f"holds no judgement: {', '.join(n for n in _JUDGEMENTS if n in found)} is empty")
    return kind


def _side(choice: Choice, value: object) -> Side:
    if choice not in (Choice.A, Choice.B):
        raise RowProblem(f"`shown_left` is `{str(value)[:40]}`; expected a or b")
    return Side.A if choice is Choice.A else Side.B


@dataclass(frozen=True, slots=True)
class _Read:
    """The judgements of a row, by what the whole log says of each column (score_table.py)."""

    found: Mapping[str, object]
    places: Mapping[str, Place]
    scores: Scores

    def choice(self, name: str) -> Choice | None:
        """A side. Raises RowProblem for a word or number that names none for certain."""
        value = self.found.get(name)
        if value is None:
            return None
        if name == "choice" and choice_of(value) is None and isinstance(plain_value(value), bool | str):
            raise RowProblem(f"unknown choice `{str(value)[:40]}`; say under `values` what it means")
        if name == "shown_left" and choice_of(value) is None and isinstance(plain_value(value), bool | str):
            raise RowProblem(f"`shown_left` is `{str(value)[:40]}`; expected a or b")
        place = self.places[name]
        if place.values is not None or not place.column:  # one of ours already
            return choice_of(value)
        return self.scores.choice(_logged_value(name, place, value), choice_of)

    def thumb(self) -> int | None:
        """1 or -1. Raises RowProblem."""
        value = self.found.get("thumb")
        if value is None:
            return None
        place = self.places["thumb"]
        own = place.values is not None or not place.column
        thumb = thumb_of(value) if own else None
        if not own and not _is_strange(value):
            thumb = self.scores.judge(_logged_value("thumb", place, value)).thumb
        if thumb is None:
            raise RowProblem(f"`thumb` is `{str(value)[:40]}`; say under `values` whether it is 1 or -1")
        return thumb

    def rating(self, name: str) -> float | None:
        """A share of the scale. Raises RowProblem."""
        value = self.found.get(name)
        if value is None:
            return None
        place = self.places[name]
        if place.values is not None or not place.column:
            scale = place.scale or Scale(0, 1)
            return scaled(value, scale.low, scale.high, place.column or name)
        verdict = self.scores.judge(_logged_value(name, place, number_of(value, place.column)))
        if verdict.rating is not None:
            return verdict.rating
        return 1.0 if verdict.thumb == 1 else 0.0


def _is_strange(value: object) -> bool:
    plain = plain_value(value)
    return isinstance(plain, str) and says_good(plain) is None


def _logged_value(name: str, place: Place, value: object) -> LoggedValue:
    """What a column says; that a column is mapped as a thumb or a rating says that it is approval."""
    if name in ("choice", "shown_left"):
        return LoggedValue(place.column, value, compares=True)
    return LoggedValue(place.column, value, place.scale, approves=True, good=place.good)


def _scores(columns: Columns, places: Mapping[str, Place]) -> Iterator[LoggedValue]:
    """The first pass: columns that the mapping itself gives no words for."""
    for name in ("choice", "shown_left", "thumb", "rating", "strength"):
        place = places.get(name)
        if place is not None and place.column and place.values is None:
            value = at_path(columns, place.column)
            if value not in (None, ""):
                yield _logged_value(name, place, value)


def _whole(value: object, name: str) -> int:
    number = number_of(value, name)
    if not number.is_integer() or not 0 <= number < 2**31:
        raise RowProblem(f"`{name}` is {number:g}; expected a whole number from 0")
    return int(number)


def _flag(value: object) -> bool | None:
    thumb = thumb_of(value)
    if value is not None and thumb is None:
        raise RowProblem(f"`consent` is `{str(value)[:40]}`; expected true or false")
    return None if thumb is None else thumb > 0


def _text(value: object, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value}"
    raise RowProblem(f"`{name}` is {type(value).__name__}; expected text")


def _reasons(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    parts: Sequence[object] = (
        value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    )
    return tuple(f"{part}".strip() for part in parts if f"{part}".strip())
