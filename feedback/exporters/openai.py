"""OpenAI's fine-tuning files: `messages` for SFT, `input`/`preferred_output`/`non_preferred_output` for preferences.

The preference form is also what Together and Fireworks take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl
from raylign.data.types import Message
from raylign.feedback.exporters.outcome import (
    ExportResult,
    Inexpressible,
    Row,
    cut_note,
    messages_in,
    require,
    weight_note,
    write_json_lines,
)

FEWEST_ROWS = 10


def write_openai_sft(rows: pl.DataFrame, path: Path) -> ExportResult:
    """SFT rows. Only the last answer is trained on (`weight` 1): nobody accepted the earlier ones."""
    require(rows, ("messages",), "OpenAI SFT")
    result = write_json_lines(path, rows, _sft)
    return replace(result, notes=(*_too_few(result), *weight_note(rows, ("weight",), "OpenAI SFT")))


def write_openai_preference(rows: pl.DataFrame, path: Path) -> ExportResult:
    """Preference rows, one assistant message a side."""
    require(rows, ("prompt", "chosen", "rejected"), "OpenAI preferences")
    result = write_json_lines(path, rows, _preference)
    left_out = (*weight_note(rows, ("weight", "margin"), "OpenAI preferences"), *cut_note(rows, "OpenAI preferences"))
    return replace(result, notes=(*_too_few(result), *left_out))


def _sft(row: Row) -> object:
    turns = messages_in(row, "messages")
    if turns[-1].role != "assistant":
        raise Inexpressible("`messages` does not end with an answer")
    messages = _plain(turns)
    for message in messages[:-1]:
        if message["role"] == "assistant":
            message["weight"] = 0
    messages[-1]["weight"] = 1
    return {"messages": messages}


def _preference(row: Row) -> object:
    prompt = messages_in(row, "prompt")
    if prompt[-1].role == "assistant":
        raise Inexpressible("`prompt` ends with an answer")
    sides = [messages_in(row, name) for name in ("chosen", "rejected")]
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        if len(side) != 1 or side[0].role != "assistant":
            raise Inexpressible(f"`{name}` has {len(side)} turns; exactly one assistant message is allowed")
    if sides[0] == sides[1]:
        raise Inexpressible("`chosen` and `rejected` are the same")
    return {
        "input": {"messages": _plain(prompt), "tools": [], "parallel_tool_calls": True},
        "preferred_output": _plain(sides[0]),
        "non_preferred_output": _plain(sides[1]),
    }


def _plain(turns: Sequence[Message]) -> list[dict[str, object]]:
    if any(turn.role == "tool" for turn in turns):
        raise Inexpressible("a tool turn; OpenAI wants the call it answers, which text turns do not keep")
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _too_few(result: ExportResult) -> tuple[str, ...]:
    if result.written >= FEWEST_ROWS:
        return ()
    return (f"OpenAI wants at least {FEWEST_ROWS} rows in a file; this one has {result.written}.",)
