"""Anthropic's HH-RLHF: two transcripts in plain text, the better one named `chosen`."""

from __future__ import annotations

import re

import msgspec
from raylign.data.types import Message
from raylign.feedback.events import Choice, Event, EventKind
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Context, Format, each_whole
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.turns import split_answer
from raylign.feedback.importers.values import content_id

_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


class _Pair(msgspec.Struct):
    """A row."""

    chosen: str
    rejected: str


def recognises(columns: Columns) -> bool:
    """Both transcripts, and a speaker named in one of them."""
    chosen, rejected = columns.get("chosen"), columns.get("rejected")
    return isinstance(chosen, str) and isinstance(rejected, str) and _SPEAKER.search(chosen) is not None


def _read(row: Row, columns: Columns, context: Context) -> list[Event]:
    pair = msgspec.convert(columns, _Pair)
    prompt, chosen = split_answer(_turns(pair.chosen, "chosen"), "chosen")
    other, rejected = split_answer(_turns(pair.rejected, "rejected"), "rejected")
    if prompt != other:
        raise RowProblem("the two transcripts part before the last answer; a pair needs one prompt")
    return [
        Event(
            event_id=content_id("hh_rlhf", pair.chosen, pair.rejected),
            kind=EventKind.SIDE_BY_SIDE,
            source=context.source,
            source_row=row.line,
            prompt=prompt,
            response_a=chosen,
            response_b=rejected,
            turn=sum(turn.role == "assistant" for turn in prompt),
            choice=Choice.A,
        )
    ]


def _turns(transcript: str, name: str) -> tuple[Message, ...]:
    before, *parts = _SPEAKER.split(transcript)
    if before.strip() or not parts:
        raise RowProblem(f"`{name}` does not begin with Human:")
    texts = [text.strip() for text in parts[1::2]]
    return tuple(Message(_ROLES[who], text) for who, text in zip(parts[::2], texts, strict=True))


FORMAT = Format(
    name="hh_rlhf",
    title="HH-RLHF (chosen and rejected transcripts)",
    recognises=recognises,
    parse=each_whole(_read),
    ids_from_content=True,
)
