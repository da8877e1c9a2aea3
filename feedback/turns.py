"""Conversations as one string a row, and back: text is many times faster to compare, search and move than lists.

Packed form: turns joined by \\x1e, role and content of a turn by \\x1f. Both signs are control characters that stand
for nothing in text; where content holds one it becomes a space.
"""

from __future__ import annotations

import polars as pl

TURN, ROLE = "\x1e", "\x1f"
TURNS_TYPE = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))


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
    return [(role, content) for role, _, content in halves]
