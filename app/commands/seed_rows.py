"""Rows that a model is shown, or that it is to answer: prompts, and prompts with an answer. Without those with calls of
tools or tools that are offered: words alone would say something else."""

from __future__ import annotations

from raylign.data.loading import RawRow, read_rows
from raylign.data.row_fields import RowError
from raylign.data.rows import CompletionRow, ConversationRow, Side, completion_or_conversation

Turns = tuple[tuple[str, str], ...]
"""Role and text of each turn."""


def prompts_in(source: str) -> list[Turns]:
    """Every different prompt of the rows that have one, in their order. Raises DataError for an unreadable source."""
    found: list[Turns] = []
    for row in read_rows(source):
        given = row.columns.get("prompt") if isinstance(row, RawRow) and not row.columns.get("tools") else None
        if isinstance(given, str) and given.strip():
            found.append((("user", given.strip()),))
        elif isinstance(given, list) and (turns := _turns(given)):
            found.append(turns)
    return list(dict.fromkeys(found))


def last_question(turns: Turns) -> str:
    """The last user turn; "" without one."""
    return next((text for role, text in reversed(turns) if role == "user"), "")


def answered_in(source: str) -> list[tuple[Turns, str]]:
    """Prompts with their answers, of rows for supervised fine-tuning; of a conversation its last answer."""
    found: list[tuple[Turns, str]] = []
    for row in read_rows(source):
        try:
            parsed = completion_or_conversation(row.columns) if isinstance(row, RawRow) else None
        except RowError:
            continue
        turns = _of(parsed) if parsed is not None else ()
        if len(turns) > 1 and turns[-1][0] == "assistant" and turns[-1][1].strip():
            found.append((turns[:-1], turns[-1][1].strip()))
    return list(dict.fromkeys(found))


def _of(row: CompletionRow | ConversationRow) -> Turns:
    sides = (row.turns,) if isinstance(row, ConversationRow) else (row.prompt, row.completion)
    if row.variables or any(turn.extra for side in sides if not isinstance(side, str) for turn in side):
        return ()
    if isinstance(row, ConversationRow):
        return tuple((turn.role, turn.content) for turn in row.turns)
    return (*_side(row.prompt, "user"), *_side(row.completion, "assistant"))


def _side(side: Side, role: str) -> Turns:
    return ((role, side),) if isinstance(side, str) else tuple((turn.role, turn.content) for turn in side)


def _turns(given: list[object]) -> Turns:
    """Those of a prompt that ends with a question; () for anything else."""
    turns = tuple(
        (str(turn["role"]), turn["content"])
        for turn in given
        if isinstance(turn, dict)
        and "role" in turn
        and isinstance(turn.get("content"), str)
        and not any(value for key, value in turn.items() if key not in ("role", "content", "weight"))
    )
    whole = len(turns) == len(given) and turns and turns[-1][0] == "user" and turns[-1][1].strip()
    return turns if whole else ()
