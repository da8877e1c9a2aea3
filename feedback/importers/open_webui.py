"""Open WebUI: the feedback export of Admin > Evaluations, which carries a snapshot of each chat.

A thumb on one answer; where the same question was answered by several models side by side (arena or not), a
comparison with each of the other answers instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from raylign.data.types import Message
from raylign.feedback.events import Choice, Event, EventKind, Side
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Context, Format, Judgements, each
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.score_table import LoggedValue
from raylign.feedback.importers.turns import turns_of
from raylign.feedback.importers.values import in_order, time_of
from raylign.feedback.scores import Scale

_REASONING = re.compile(r'<details\b[^>]*\btype="reasoning"[^>]*>(?:(?!<details\b).)*?</details>\s*', re.DOTALL)
_BLOCK = re.compile(r'<details\b[^>]*\btype="(\w+)"')
_MOST_TURNS = 10_000  # a longer way to the root is a circle


class _Details(msgspec.Struct):
    rating: float | str | None = None


class _Data(msgspec.Struct):
    rating: int | str | None = None
    model_id: str | None = None
    sibling_model_ids: list[str] | None = None
    reason: str | None = None
    comment: str | None = None
    tags: list[str] | None = None
    details: _Details | None = None


class _Meta(msgspec.Struct):
    arena: bool | None = None
    chat_id: str | None = None
    message_id: str | None = None


class _Feedback(msgspec.Struct):
    """The fields of an exported feedback that are read."""

    id: str
    user_id: str
    data: _Data
    meta: _Meta
    snapshot: dict[str, object] | None = None
    created_at: object = None
    updated_at: object = None


class _Answer(msgspec.Struct):
    """A message of the chat's tree."""

    role: str
    content: object
    id: str | None = None
    parentId: str | None = None
    childrenIds: list[str] = []
    model: str | None = None
    selectedModelId: str | None = None
    modelIdx: int | None = None
    files: list[object] | None = None
    sources: list[object] | None = None  # of retrieved text and of the web
    citations: list[object] | None = None  # the same in older exports

    @property
    def model_id(self) -> str | None:
        """In the arena `model` is the arena's own name."""
        return self.selectedModelId or self.model


def recognises(columns: Columns) -> bool:
    """Rating data, and where in which chat."""
    data, meta = columns.get("data"), columns.get("meta")
    return "user_id" in columns and isinstance(data, Mapping) and isinstance(meta, Mapping) and "rating" in data


def _read(row: Row, columns: Columns, context: Context) -> Judgements:
    feedback = msgspec.convert(columns, _Feedback)
    thumb = context.scores.judge(_thumb(feedback)).thumb if f"{feedback.data.rating}" in ("1", "-1") else None
    if thumb is None:
        raise RowProblem(f"`data.rating` is {str(feedback.data.rating)[:40]}; expected 1 or -1")
    chat = _chat(feedback)
    messages = chat["history"]["messages"]
    rated = _message(messages, feedback.meta.message_id)
    path = _path(messages, rated)
    base = {
        "source": context.source,
        "source_row": row.line,
        "prompt": (*_instructions(chat), *(turn for message in path for turn in _turns(message))),
        "response_a": _turns(rated)[0].content,
        "conversation_id": feedback.meta.chat_id,
        "turn": sum(message.role == "assistant" for message in path),
        "user_hash": context.hashed(feedback.user_id),
        "time": _time(feedback),
        "updated": time_of(feedback.updated_at, "updated_at"),
        "model_a": feedback.data.model_id or rated.model_id,
        "rating": _rating(feedback, context),
        "reasons": (feedback.data.reason,) if feedback.data.reason else (),
        "comment": feedback.data.comment or None,
        "topic": feedback.data.tags[0] if feedback.data.tags else None,
    }
    others = _others(messages, rated, feedback) if feedback.data.sibling_model_ids else []
    if not others:
        return [Event(event_id=f"open_webui:{feedback.id}", kind=EventKind.THUMB, thumb=thumb, **base)]  # type: ignore[arg-type]
    return [
        Event(
            event_id=f"open_webui:{feedback.id}" + (f":{place}" if place else ""),
            kind=EventKind.SIDE_BY_SIDE,
            response_b=_turns(other)[0].content,
            model_b=other.model_id,
            choice=Choice.A if thumb > 0 else Choice.B,
            shown_left=_left(rated, other),
            **base,  # type: ignore[arg-type]
        )
        for place, other in enumerate(others)
    ]


def _chat(feedback: _Feedback) -> Mapping[str, Any]:
    """What holds the chat's messages by id; the chat may be wrapped once more."""
    chat: object = (feedback.snapshot or {}).get("chat")
    for _ in range(2):
        if isinstance(chat, Mapping) and isinstance(chat.get("history"), Mapping):
            messages = chat["history"].get("messages")
            if isinstance(messages, Mapping):
                return chat
        chat = chat.get("chat") if isinstance(chat, Mapping) else None
    raise RowProblem("no snapshot of the chat, so neither question nor answer; export it from Admin > Evaluations")


def _instructions(chat: Mapping[str, object]) -> tuple[Message, ...]:
    """The chat's own system prompt. One that belongs to a model or a user is not in the snapshot."""
    params = chat.get("params")
    told = params.get("system") if isinstance(params, Mapping) else None
    told = told or chat.get("system")
    return (Message("system", told),) if isinstance(told, str) and told.strip() else ()


def _message(messages: Mapping[str, object], key: str | None) -> _Answer:
    found = messages.get(key) if key is not None else None
    if found is None:
        raise RowProblem(f"message `{str(key)[:60]}` is not in the snapshot of the chat")
    return msgspec.convert(found, _Answer)


def _path(messages: Mapping[str, object], rated: _Answer) -> list[_Answer]:
    """From the first message to the one before the rated."""
    path: list[_Answer] = []
    above = rated.parentId
    while above is not None and len(path) < _MOST_TURNS:
        message = _message(messages, above)
        path.append(message)
        above = message.parentId
    if above is not None:
        raise RowProblem("the chat's messages go round in a circle")
    return path[::-1]


def _others(messages: Mapping[str, object], rated: _Answer, feedback: _Feedback) -> list[_Answer]:
    """The other models' answers to the same question, in the order they were asked for."""
    if rated.parentId is None:
        return []
    names = set(feedback.data.sibling_model_ids or ())
    ids = [key for key in _message(messages, rated.parentId).childrenIds if key != feedback.meta.message_id]
    found = [_message(messages, key) for key in ids if key in messages]
    chosen = {message.model_id: message for message in found if message.model_id in names}  # the latest of each model
    return [message for message in chosen.values() if message.content]


def _left(rated: _Answer, other: _Answer) -> Side | None:
    if rated.modelIdx is None or other.modelIdx is None or rated.modelIdx == other.modelIdx:
        return None
    return Side.A if rated.modelIdx < other.modelIdx else Side.B


def _turns(message: _Answer) -> tuple[Message, ...]:
    """Text alone: reasoning is taken out of answers. Raises RowProblem for files and for calls of tools."""
    for file in message.files or ():
        kind = file.get("type") if isinstance(file, Mapping) else None
        raise RowProblem(f"a turn of `chat` holds a part of type {str(kind)[:40]!r}; only text is read")
    if message.sources or message.citations:
        raise RowProblem("an answer of `chat` was made from retrieved text, and how the model saw it is not known")
    (turn,) = turns_of([{"role": message.role, "content": message.content}], "chat")
    if turn.role != "assistant":
        return (turn,)
    text = _REASONING.sub("", turn.content)
    if block := _BLOCK.search(text):
        raise RowProblem(f"a turn of `chat` holds a block of type {block[1][:40]!r}; only text is read")
    return (Message(turn.role, text),)


def _time(feedback: _Feedback) -> object:
    created = time_of(feedback.created_at, "created_at")
    in_order(created, time_of(feedback.updated_at, "updated_at"), "the feedback")
    return created


def _thumb(feedback: _Feedback) -> LoggedValue:
    return LoggedValue("data.rating", feedback.data.rating, approves=True)


def _details(feedback: _Feedback) -> LoggedValue | None:
    """The optional number beside the thumb, from 1 to 10."""
    rating = feedback.data.details.rating if feedback.data.details is not None else None
    return None if rating is None else LoggedValue("data.details.rating", rating, Scale(1, 10))


def _rating(feedback: _Feedback, context: Context) -> float | None:
    logged = _details(feedback)
    return None if logged is None else context.scores.judge(logged).rating


def _scores(columns: Columns, context: Context) -> Iterable[LoggedValue]:
    feedback = msgspec.convert({name: columns[name] for name in _SAYS if name in columns}, _Feedback)
    return [logged for logged in (_thumb(feedback), _details(feedback)) if logged is not None]


_SAYS = ("id", "user_id", "data", "meta")  # not the snapshot, which is most of a row


FORMAT = Format(
    name="open_webui",
    title="Open WebUI feedback export",
    recognises=recognises,
    parse=each(_read),
    several=r"^(open_webui:[^:]+)(?::\d+)?$",
    scores=_scores,
)
