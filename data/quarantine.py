"""Rows that cannot be used: kept with their reason, counted, and past a limit the data are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from raylign.conf.errors import DataError

_ROW_CHARS = 500
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row and why it cannot be used."""

    number: int  # 1-based, over all files of the data set in reading order
    source: str  # file and line, for a person
    reason: str
    row: str  # as read, at most 500 characters


class Quarantine:
    """Collects bad rows, into `quarantine.jsonl` when a path is given. A context manager that closes the file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self.rows: list[BadRow] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, number: int, source: str, reason: str, row: object) -> None:
        """Put a row aside. The file appears with the first one."""
        bad = BadRow(number, source, reason, as_text(row)[:_ROW_CHARS])
        self.rows.append(bad)
        if self._path is None:
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", encoding="utf-8")
        line = {"row": bad.number, "source": bad.source, "reason": bad.reason, "content": bad.row}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def refuse_past(self, fraction: float, total: int, name: str) -> None:
        """Raise DataError when more than `fraction` of `total` rows are here, with counts and the first examples."""
        if not self.rows or len(self.rows) <= fraction * total:
            return
        problems = [
            f"data {name}: {len(self.rows)} of {total} rows cannot be used, more than "
            f"data.max_bad_fraction={fraction:g} allows; fix them, or raise the limit."
        ]
        problems += [f"{bad.source}: {bad.reason}" for bad in self.rows[:_EXAMPLES]]
        raise DataError(problems)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of the rows of one data set; `kept + bad + dropped == total`."""

    name: str
    total: int
    kept: int
    bad: int
    overlong: int  # rows longer than the limit, whatever was done with them
    dropped: int  # overlong rows left out
    examples: tuple[BadRow, ...] = field(default=())
    origins: tuple[int, ...] = field(default=(), repr=False)  # of each item kept: its row's number, as read_rows counts


def as_text(row: object) -> str:
    """A row as one line of text."""
    if isinstance(row, str):
        return row
    return json.dumps(row, ensure_ascii=False, default=str) if isinstance(row, Mapping | list) else repr(row)
