"""Amazon Bedrock's file for fine-tuning Anthropic models: `system` (optional) and `messages`, and nothing else.

At least two messages, the user first, the assistant last, strictly in turn.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
from raylign.feedback.exporters.outcome import (
    ExportResult,
    Inexpressible,
    Row,
    messages_in,
    require,
    weight_note,
    write_json_lines,
)

_IN_TURN = ("user", "assistant")
_SYSTEM = ("system", "developer")


def write_bedrock(rows: pl.DataFrame, path: Path) -> ExportResult:
    """SFT rows; those Bedrock would refuse are reported, never bent into shape."""
    require(rows, ("messages",), "Bedrock")
    result = write_json_lines(path, rows, _express)
    return replace(result, notes=weight_note(rows, ("weight",), "Bedrock"))


def _express(row: Row) -> object:
    turns = messages_in(row, "messages")
    system = turns[0].content if turns[0].role in _SYSTEM else None
    turns = turns[1:] if system is not None else turns
    if len(turns) < 2:
        raise Inexpressible("fewer than two messages")
    for place, turn in enumerate(turns):
        if turn.role not in _IN_TURN:
            raise Inexpressible(f"a {turn.role} turn after the beginning; only user and assistant may follow")
        if turn.role != _IN_TURN[place % 2]:
            raise Inexpressible("user and assistant do not take turns, beginning with the user")
    if turns[-1].role != "assistant":
        raise Inexpressible("does not end with the assistant")
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return {"messages": messages} if system is None else {"system": system, "messages": messages}
