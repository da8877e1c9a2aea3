"""OpenAssistant's message trees (oasst1, oasst2): ranked replies as pairs of neighbours. Rank 0 is the best.

Each branch is a conversation of its own; replies are compared where the way to them is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import msgspec
from raylign.data.types import Message
from raylign.feedback.events import Choice, Event, EventKind
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Context, Format, Judgements, each
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.values import locale_of, time_of

_ROLES = {"prompter": "user", "assistant": "assistant"}


class _Node(msgspec.Struct):
    """A message of the tree."""

    message_id: str
    text: str
    role: str
    rank: int | None = None
    lang: str | None = None
    created_date: object = None
    deleted: bool | None = None
    replies: list[_Node] = []


def recognises(columns: Columns) -> bool:
    """A tree's id and its first message."""
    return "message_tree_id" in columns and isinstance(columns.get("prompt"), Mapping)


def _read(row: Row, columns: Columns, context: Context) -> Judgements:
    root = msgspec.convert(columns.get("prompt"), _Node)
    events = list(_pairs(root, (), f"{columns.get('message_tree_id')}", row, context))
    if not events:
        raise RowProblem("a tree without ranked answers")
    return events


def _pairs(node: _Node, above: tuple[Message, ...], tree: str, row: Row, context: Context) -> Iterator[Event]:
    """Neighbours in rank among the answers to each question, and of all branches below."""
    if node.role not in _ROLES:
        raise RowProblem(f"unknown role `{node.role[:40]}`")
    turns = (*above, Message(_ROLES[node.role], node.text))
    replies = [reply for reply in node.replies if not reply.deleted]
    ranked = sorted((reply for reply in replies if reply.rank is not None), key=lambda reply: reply.rank or 0)
    if node.role == "prompter":
        for better, worse in pairwise(ranked):
            if better.rank == worse.rank:
                continue
            yield Event(
                event_id=f"oasst:{better.message_id}:{worse.message_id}",
                kind=EventKind.SIDE_BY_SIDE,
                source=context.source,
                source_row=row.line,
                prompt=turns,
                response_a=better.text,
                response_b=worse.text,
                conversation_id=tree,
                turn=len(above) // 2,
                time=time_of(better.created_date, "created_date"),
                choice=Choice.A,
                locale=locale_of(better.lang),
            )
    for reply in replies:
        yield from _pairs(reply, turns, tree, row, context)


FORMAT = Format(
    name="oasst",
    title="OpenAssistant message trees",
    recognises=recognises,
    parse=each(_read),
)
