"""Our own log: one object a line with the fields of `feedback.events.Event`, checked strictly.

`user_id` and `annotator_id` may stand for the hashes: raw ids, hashed on reading. `source` and `source_row` may be
left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import msgspec
from raylign.data.rows import ROLES
from raylign.data.types import FinishReason
from raylign.feedback.events import Choice, Event, EventKind, Side
from raylign.feedback.importers.calls import turn_with_calls, with_tools
from raylign.feedback.importers.containers import Columns, Row, why_broken
from raylign.feedback.importers.format import Context, Format, each, sentence
from raylign.feedback.importers.outcome import Parsed, RowProblem, excerpt
from raylign.feedback.turns import said

_HASH = re.compile(r"[0-9a-f]{16}")
_UNKNOWN = re.compile(r"unknown field `(.*)`")


class Turn(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """One turn as logged."""

    role: Literal["system", "user", "assistant", "tool", "developer"]
    content: str
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    extra: str = ""  # the three above as a turn of an event has them; never read


class NativeRow(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """A line as logged: an Event's fields by their JSON types."""

    event_id: str
    kind: EventKind
    prompt: list[Turn]
    response_a: str
    tools: list[dict[str, Any]] | None = None  # that were offered
    tool_calls_a: list[dict[str, Any]] | None = None  # of the answer
    tool_calls_b: list[dict[str, Any]] | None = None
    source: str = "native"
    source_row: int = 0  # where it stood in another file; replaced by where it stands in this one
    response_b: str | None = None
    finish_reason_a: FinishReason | None = None
    finish_reason_b: FinishReason | None = None
    conversation_id: str | None = None
    turn: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None = None
    user_hash: str | None = None
    user_id: str | int | None = None
    annotator_hash: str | None = None
    annotator_id: str | int | None = None
    time: datetime | None = None
    updated: datetime | None = None
    seconds_taken: float | None = None
    model_a: str | None = None
    model_b: str | None = None
    model_version: str | None = None
    shown_left: Side | None = None
    choice: Choice | None = None
    strength: float | None = None
    thumb: Literal[1, -1] | None = None
    rating: float | None = None
    score: str | None = None
    corrected: str | None = None
    reasons: list[str] = []
    comment: str | None = None
    persona: str | None = None
    locale: str | None = None
    surface: str | None = None
    topic: str | None = None
    consent: bool | None = None


_WORDS: dict[str, Sequence[object]] = {
    "kind": [kind.value for kind in EventKind],
    "choice": [choice.value for choice in Choice],
    "shown_left": [side.value for side in Side],
    "finish_reason_a": [reason.value for reason in FinishReason],
    "finish_reason_b": [reason.value for reason in FinishReason],
    "thumb": (1, -1),
    "role": ROLES,
}
_READ_ONLY = ("user_id", "annotator_id", "tools", "tool_calls_a", "tool_calls_b")
"""What an event holds in another form."""
_FIELDS = msgspec.structs.fields(NativeRow)
_NAMES = [field.name for field in _FIELDS]
_REQUIRED = [field.name for field in _FIELDS if field.required]


def recognises(columns: Columns) -> bool:
    """Two of the fields nobody else has together."""
    return "event_id" in columns and "kind" in columns and ("response_a" in columns or "prompt" in columns)


def parse_lines(lines: Iterable[tuple[int, bytes]], context: Context) -> Iterator[Parsed]:
    """Straight from bytes to typed rows."""
    decode = msgspec.json.Decoder(NativeRow).decode
    for number, line in lines:
        try:
            row = decode(line)
            problem = _finish(row, number, context)
        except msgspec.ValidationError as error:
            problem = _say(error)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            problem = why_broken(line, error)
        if problem:
            yield Parsed(number, problems=(problem,), excerpt=excerpt(line))
        else:
            yield Parsed(number, (row,))  # type: ignore[arg-type]  # has an Event's attributes, at a tenth of the cost


def _read(row: Row, columns: Columns, context: Context) -> list[Event]:
    filled = {key: value for key, value in columns.items() if value is not None}  # parquet has every column in a row
    try:
        native = msgspec.convert(filled, NativeRow)
    except msgspec.ValidationError as error:
        raise RowProblem(_say(error)) from error
    problem = _finish(native, row.line, context)
    if problem:
        raise RowProblem(problem)
    values = {name: getattr(native, name) for name in _NAMES if name not in _READ_ONLY}
    return [Event(**values)]


def _finish(row: NativeRow, number: int, context: Context) -> str:
    """Hash what is raw. Why the row is refused, or nothing."""
    row.source_row = number
    for given, raw in ((row.user_hash, row.user_id), (row.annotator_hash, row.annotator_id)):
        if given is not None and raw is not None:
            return "gives a person's id both raw and hashed; keep one of the two"
    if row.tools or row.tool_calls_a or row.tool_calls_b or any(_has_fields(turn) for turn in row.prompt):
        try:
            _take_calls(row)
        except RowProblem as wrong:
            return f"{wrong}"
    row.user_hash = _hash_of(row.user_hash, row.user_id, context)
    row.annotator_hash = _hash_of(row.annotator_hash, row.annotator_id, context)
    return ""


def _has_fields(turn: Turn) -> bool:
    return bool(turn.tool_calls or turn.tool_call_id or turn.name or turn.extra)


def _take_calls(row: NativeRow) -> None:
    """Calls of the answers after their words, and the tools before all turns. Raises RowProblem."""
    if any(turn.extra for turn in row.prompt):
        raise RowProblem("unknown field `extra`")
    answers = []
    for text, calls in ((row.response_a, row.tool_calls_a), (row.response_b or "", row.tool_calls_b)):
        answers.append(turn_with_calls("assistant", text, {"tool_calls": calls}, "tool_calls"))
    turns = [turn_with_calls(t.role, t.content, msgspec.structs.asdict(t), "prompt") for t in row.prompt]
    row.prompt = [*with_tools((*turns, *answers), row.tools, "tools")[: -len(answers)]]  # type: ignore[list-item]
    row.response_a = said(answers[0])
    row.response_b = None if row.response_b is None else said(answers[1])


def _hash_of(given: str | None, raw: str | int | None, context: Context) -> str | None:
    """What is no hash of ours is a raw id in the wrong field: hashed, so that it goes no further."""
    if given is None or not _HASH.fullmatch(given):
        return context.hashed(raw if given is None else given)
    return given


def _say(error: msgspec.ValidationError) -> str:
    text = str(error)
    if unknown := _UNKNOWN.search(text):
        near = get_close_matches(unknown[1], _NAMES, n=1)
        return f"unknown field `{unknown[1][:40]}`" + (f"; did you mean `{near[0]}`?" if near else "")
    if "Invalid enum value" in text:
        field = text.rpartition("$.")[2].rstrip("`")
        value = text.partition("value ")[2].partition(" - at")[0]
        allowed = _WORDS[field.rpartition(".")[2]]
        return f"unknown {field} {value}; expected one of {', '.join(f'{word}' for word in allowed)}"
    return sentence(error)


def missing_fields(columns: Iterable[str]) -> list[str]:
    """Fields an event cannot be without that are not there."""
    return [name for name in _REQUIRED if name not in set(columns)]


FORMAT = Format(
    name="native",
    title="Raylign's own events (JSONL or parquet)",
    recognises=recognises,
    parse=each(_read),
    parse_lines=parse_lines,
)
