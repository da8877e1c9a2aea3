"""What an export says about itself: what was written, what the format cannot hold, and what it leaves out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import polars as pl
from raylign.conf.errors import DataError
from raylign.data.types import Message
from raylign.feedback.events import Column

_REJECTED_COLUMNS: dict[str, Column] = {"id": pl.String, "reason": pl.String}
REJECTED_SCHEMA = pl.Schema(_REJECTED_COLUMNS)
"""A built row that the format cannot express, and why."""


class Inexpressible(ValueError):
    """The format has no way to say this row; the message says why."""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """One file written. `rows_in == written + rejected.height`, always."""

    path: Path
    rows_in: int
    written: int
    rejected: pl.DataFrame  # REJECTED_SCHEMA
    notes: tuple[str, ...] = ()  # what the format leaves out of every row, or wants of the whole file


Row = Mapping[str, object]
"""A built row: a column of SFT_SCHEMA, PAIR_SCHEMA or KTO_SCHEMA each."""


def write_json_lines(path: Path, rows: pl.DataFrame, express: Callable[[Row], object]) -> ExportResult:
    """One line for each row that `express` has an object for; the file appears whole or not at all."""
    encode = msgspec.json.Encoder().encode
    rejected: list[tuple[object, str]] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        for row in rows.iter_rows(named=True):
            try:
                line = encode(express(row))
            except Inexpressible as problem:
                rejected.append((row["id"], f"{problem}"))
            else:
                file.write(line + b"\n")
    os.replace(part, path)
    frame = pl.DataFrame(rejected, schema=REJECTED_SCHEMA, orient="row")
    return ExportResult(path, rows.height, rows.height - frame.height, frame)


def require(rows: pl.DataFrame, names: Iterable[str], target: str) -> None:
    """Raise DataError when the frame is not of the kind `target` is made from."""
    missing = [name for name in (*names, "id") if name not in rows.columns]
    if missing:
        raise DataError(
            f"export to {target}: the rows have no column {', '.join(missing)}; they have {', '.join(rows.columns)}."
        )


def messages_in(row: Row, name: str) -> tuple[Message, ...]:
    """The turns of a column. Raises Inexpressible for none and for blank ones, which no vendor takes."""
    turns = row[name]
    if not isinstance(turns, Sequence) or not turns:
        raise Inexpressible(f"`{name}` has no turns")
    beside = {key for turn in turns for key, value in turn.items() if value and key not in ("role", "content")}
    if beside or row.get("tools"):
        raise Inexpressible(f"`{min(beside, default='tools')}`, and calls of tools are not written by this export")
    messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
    blank = next((message.role for message in messages if not (message.content or "").strip()), None)
    if blank is not None:
        raise Inexpressible(f"`{name}` has an empty {blank} turn")
    return messages


def cut_note(rows: pl.DataFrame, target: str) -> tuple[str, ...]:
    """Says so when answers were cut at the token limit, which a vendor's format cannot say."""
    flags = [name for name in ("chosen_finished", "rejected_finished") if name in rows.columns]
    cut = sum(int((~rows[name].fill_null(True)).sum()) for name in flags)
    return (
        (f"{target} cannot say that an answer was cut off; {cut:,} were, and count as finished there.",) if cut else ()
    )


def weight_note(rows: pl.DataFrame, names: Sequence[str], target: str) -> tuple[str, ...]:
    """Says so when columns that differ between rows have no place in the format."""
    weighted = [name for name in names if name in rows.columns and rows[name].drop_nulls().n_unique() > 1]
    return (f"{target} has no place for {' and '.join(weighted)}: all rows count the same there.",) if weighted else ()
