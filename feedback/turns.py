"""Conversations as one string a row, and back: text is many times faster to compare, search and move than lists.

Packed form: turns joined by \\x1e, role and content of a turn by \\x1f. Both signs are control characters that stand
for nothing in text; where content holds one it becomes a space.

What a turn or an answer has beside its words (calls of tools, the call that a tool's turn answers) stands after them:
\x1d and a JSON object, also in event frames. Tools that were offered are such an object in a first turn of role TOOLS.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import polars as pl
from raylign.data.types import Message

TURN, ROLE, FIELDS = "\x1e", "\x1f", "\x1d"
TOOLS = "tools"
TURNS_TYPE = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))


class Said(str):
    """Words with FIELDS after them: only what is one holds any, for text of people and models may hold the sign."""


def said(turn: Message) -> str:
    """A turn's words, with its fields after them where it has any."""
    return Said(plain(turn.content) + FIELDS + turn.extra) if turn.extra else turn.content


def plain(text: str) -> str:
    """Text in which FIELDS stands for nothing."""
    return text if isinstance(text, Said) else text.replace(FIELDS, " ")


def shown(text: str) -> str:
    """For people: fields on a line of their own."""
    return text.replace(FIELDS, "\n").strip("\n")


def message_of(role: str, text: str) -> dict[str, Any]:
    """A turn of a row: role, words and fields."""
    words, _, fields = text.partition(FIELDS)
    return {"role": role, "content": words} | (json.loads(fields) if fields else {})


def changed(text: str, change: Callable[[str], str]) -> str:
    """`change` of all words in a packed conversation or answer; in fields, of each text by itself."""
    if FIELDS not in text:
        return change(text)
    parts = (turn.partition(FIELDS) for turn in text.split(TURN))
    return TURN.join(
        change(words) + mark + (json.dumps(_leaves(json.loads(fields), change), ensure_ascii=False) if mark else "")
        for words, mark, fields in parts
    )


def _leaves(value: Any, change: Callable[[str], str]) -> Any:
    """Arguments are JSON in a text: what is inside is changed and not the JSON."""
    if isinstance(value, dict):
        return {key: _leaves(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [_leaves(each, change) for each in value]
    if isinstance(value, int | float) and not isinstance(value, bool):  # a telephone number, too, is written as one
        told = change(written := json.dumps(value))
        return value if told == written else told
    if not isinstance(value, str):
        return value
    try:
        inner = json.loads(value) if value[:1] in ("{", "[") else None
    except (ValueError, RecursionError):
        inner = None
    if inner is None:
        return change(value)
    new = _leaves(inner, change)
    return value if new == inner else json.dumps(new, ensure_ascii=False)


def pack(turns: pl.Expr) -> pl.Expr:
    """List of turns -> packed text; null and empty lists become ''."""
    one = pl.concat_str(
        pl.element().struct.field("role").fill_null(""),
        pl.element().struct.field("content").fill_null("").str.replace_all(f"[{TURN}{ROLE}]", " "),
        separator=ROLE,
    )
    return turns.list.eval(one).list.join(TURN).fill_null("")


def unpack(packed: pl.Expr) -> pl.Expr:
    """Packed text -> list of turns."""
    halves = pl.element().str.split_exact(ROLE, 1)
    turn = pl.struct(
        halves.struct.field("field_0").alias("role"), halves.struct.field("field_1").fill_null("").alias("content")
    )
    return packed.str.split(TURN).list.eval(turn).cast(TURNS_TYPE)


def turn(role: str, content: pl.Expr) -> pl.Expr:
    """One packed turn."""
    return pl.concat_str(pl.lit(f"{role}{ROLE}"), content)


def with_calls() -> pl.Expr:
    """Whether an event's frame holds more than words: models that judge or revise are not asked about such events."""
    turns = pl.col("prompt").list.eval(pl.element().struct.field("content").str.contains(FIELDS)).list.any()
    return turns | pl.any_horizontal(pl.col("response_a", "response_b").str.contains(FIELDS).fill_null(False))


def last_user(packed: pl.Expr) -> pl.Expr:
    """Content of the last user turn: what a person would call the question. '' when there is none."""
    return packed.str.extract(f"(?s).*(?:^|{TURN})user{ROLE}([^{TURN}]*)", 1).fill_null("")


def first_user(packed: pl.Expr) -> pl.Expr:
    """Content of the first user turn: by it a conversation is known that has no id. '' when there is none."""
    return packed.str.extract(f"(?s)(?:^|{TURN})user{ROLE}([^{TURN}]*)", 1).fill_null("")


def user_text(packed: pl.Expr) -> pl.Expr:
    """The user's text in all turns, one line a turn."""
    user_turns = packed.str.extract_all(f"(?:^|{TURN})user{ROLE}[^{TURN}]*")
    return user_turns.list.eval(pl.element().str.replace(f"^{TURN}?user{ROLE}", "")).list.join("\n")


def contents(packed: pl.Expr) -> pl.Expr:
    """All contents, one line a turn, without roles."""
    return packed.str.replace_all(f"(?:^|{TURN})[a-z]+{ROLE}", "\n").str.strip_chars_start("\n")


def turns_in(packed: str) -> list[tuple[str, str]]:
    """(role, content) of each turn of one packed conversation."""
    halves = [turn.partition(ROLE) for turn in packed.split(TURN)] if packed else []
    return [(role, shown(content)) for role, _, content in halves]
