"""Rows of a CSV file: a header of names, then text in every cell. Separated by commas, semicolons or tabs.

Cells are text, so the few columns that are not get their type here once their names are known: numbers, true and false,
and conversations written as JSON. An empty cell is a value that is not there.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from raylign.conf.errors import DataError

CSV_SUFFIXES = (".csv", ".tsv")

_NUMBERS = frozenset({"weight", "margin"})
_FLAGS = frozenset({"label", "completion_finished", "chosen_finished", "rejected_finished"})
_TURNS = frozenset({"messages", "prompt", "completion", "chosen", "rejected"})
_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True)
class Cells:
    """A row of text; None for an empty cell."""

    columns: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Broken:
    """A place in a file that holds no row, and why."""

    reason: str
    text: str


def read_csv(file: Path) -> Iterator[tuple[str, Cells | Broken]]:
    """Each row with file and line of its first character. Raises DataError for a file without a usable header."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # answers are longer than the module's 128 KiB
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        first = text.readline()
        delimiter = max(",;\t", key=first.count)
        lines = csv.reader(chain([first], text), delimiter=delimiter, strict=True)
        header = _header(file, next(lines, []))
        while True:
            where = f"{file.name}:{lines.line_num + 1}"
            try:
                cells = next(lines, None)
            except csv.Error as error:
                yield where, Broken(f"not CSV ({error})", "")
                continue
            if cells is None:
                return
            if cells:
                yield where, _row(header, cells, delimiter)


def typed(columns: Mapping[str, object]) -> dict[str, object]:
    """Cells as what their columns hold, by standard names; text that is no such value stays text, reported there."""
    return {name: _value(name, cell) for name, cell in columns.items()}


def _header(file: Path, names: list[str]) -> list[str]:
    names = [name.strip() for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not any(names) or twice:
        what = f"names the column {twice[0]!r} twice" if twice else "is empty"
        raise DataError(f"data {file}: the first line {what}; it must hold the names of the columns.")
    return names


def _row(header: list[str], cells: list[str], delimiter: str) -> Cells | Broken:
    text = delimiter.join(cells)
    if len(cells) != len(header):
        return Broken(f"{len(cells)} cells where the first line names {len(header)} columns", text)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return Broken("not UTF-8", text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    return Cells({name: cell or None for name, cell in zip(header, cells, strict=True)})


def _value(name: str, cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    if name in _NUMBERS:
        try:
            return float(cell)
        except ValueError:
            return cell
    if name in _FLAGS:
        return _WORDS.get(cell.strip().lower(), cell)
    if name in _TURNS and cell.lstrip().startswith("[{"):
        try:
            return json.loads(cell)
        except json.JSONDecodeError:
            return cell
    return cell
