"""Files as rows: JSON lines, one JSON list, CSV, parquet, Excel; any of these compressed or in a zip. Told by content.

A row that cannot be read is still a row: it comes with the reason instead of its columns.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
import pyarrow.parquet as pq
from raylign.conf.errors import DataError
from raylign.feedback.importers.foreign import refusal_of
from raylign.feedback.importers.outcome import excerpt
from raylign.feedback.importers.packed import UNREADABLE, Shell, is_workbook, logical_suffix, members, opened, shell_of
from raylign.feedback.importers.workbook import sheet_rows

Columns = Mapping[str, object]
"""A row of somebody else's making: column names to JSON-like values."""

_BOM = b"\xef\xbb\xbf"
_WRAPPERS = ("data", "items", "results", "records", "rows", "scores", "feedback")
_WRAPPED = re.compile(rb'\{\s*"(' + "|".join(_WRAPPERS).encode() + rb')"\s*:\s*\[')
_EXCEL_SEPARATOR = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
_PARQUET_BATCH = 4096
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Row:
    """One row as stored. `line` is the line it starts on, or its place in a list or table, from 1."""

    line: int
    columns: Columns | None
    problem: str = ""  # why there are no columns
    raw: bytes | str = b""  # as read, for the excerpt; empty where it has to be made from the columns

    @property
    def excerpt(self) -> str:
        """What to show a person."""
        if self.raw:
            return excerpt(self.raw)
        return excerpt(json.dumps(self.columns, ensure_ascii=False, default=str)[:2000])


class Container:
    """What kind of file it is. `kind` is jsonl, json, csv, parquet or xlsx; `member` names a file in a zip archive."""

    def __init__(self, path: Path, member: str | None = None) -> None:
        self.path, self.member = path, member
        self.name = path.name if member is None else f"{path.name}/{member}"
        try:
            self._shell = shell_of(path)
            if self._shell is Shell.ZIP and member is None:
                names = members(path)
                if is_workbook(names):
                    self.kind = "xlsx"
                    return
                if len(names) != 1:
                    raise DataError(f"{path}: holds {len(names)} files; unpack it and name the log ({names[:3]}).")
                self.member = names[0]
            with self.open() as file:
                head = file.read(1 << 16)
        except UNREADABLE as error:
            raise DataError(f"{path}: cannot be read ({error}).") from error
        self.kind = self._kind_of(head)

    def open(self) -> IO[bytes]:
        """The bytes, unpacked."""
        return opened(self.path, self._shell, self.member)

    def rows(self) -> Iterator[Row]:
        """All rows in order; blank lines are none. Raises DataError when the file as a whole is broken."""
        read = {
            "jsonl": self._lines,
            "json": self._list,
            "csv": self._table,
            "parquet": self._parquet,
            "xlsx": self._sheet,
        }
        try:
            yield from read[self.kind]()
        except UNREADABLE as error:
            raise DataError(f"{self.path}: cannot be read to its end ({error}).") from error

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines of a jsonl file that are not blank, numbered from 1, without byte order marks.

        Raises DataError when the file breaks off.
        """
        try:
            with self.open() as file:
                for number, line in enumerate(file, start=1):
                    if line.startswith(_BOM):
                        line = line[3:]
                    if not line.isspace() and line:
                        yield number, line
        except UNREADABLE as error:
            raise DataError(f"{self.path}: cannot be read to its end ({error}).") from error

    def _kind_of(self, head: bytes) -> str:
        if head.startswith(b"PAR1"):
            return "parquet"
        if head.startswith(b"\xd0\xcf\x11\xe0"):  # workbooks from before 2007
            return "xlsx"
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"{self.path}: is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8).")
        if refusal := refusal_of(head):
            raise DataError(f"{self.path}: {refusal}")
        text = head.removeprefix(_BOM).lstrip()
        if not text:
            raise DataError(f"{self.path}: is empty.")
        named_lines = logical_suffix(self.member or self.path.name) in (".jsonl", ".ndjson")
        if text.startswith(b"["):
            return "jsonl" if named_lines and _objects_in(text) > 1 else "json"
        if text.startswith(b"{"):
            return "jsonl" if self._has_row_a_line(text) and not _is_wrapped(text) else "json"
        return "jsonl" if named_lines or _objects_in(text) > 1 else "csv"

    def _has_row_a_line(self, head: bytes) -> bool:
        """One line alone is an object, or the only line is cut off by the end of what was looked at."""
        first = head.partition(b"\n")[0]
        return _objects_in(head) > 0 or len(first) > 200  # printed for people, an object's first line is short

    def _lines(self) -> Iterator[Row]:
        for number, line in self.lines():
            yield _row_of(number, line)

    def _list(self) -> Iterator[Row]:
        with self.open() as file:
            text = file.read().removeprefix(_BOM)
        try:
            whole = msgspec.json.decode(text, type=list[msgspec.Raw] | dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            yield from _salvaged(text, error)
            return
        if isinstance(whole, dict):
            key = next((key for key in _WRAPPERS if key in whole and bytes(whole[key])[:1] == b"["), None)
            whole = msgspec.json.decode(whole[key], type=list[msgspec.Raw]) if key else [msgspec.Raw(text)]
        for number, raw in enumerate(whole, start=1):
            yield _row_of(number, bytes(raw))

    def _table(self) -> Iterator[Row]:
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        with self.open() as file:
            text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
            first, declared, passed = text.readline(), None, 0
            if match := _EXCEL_SEPARATOR.fullmatch(first):  # what Excel writes to tell itself the separator
                declared, first, passed = match[1], text.readline(), 1
            delimiter = declared or max(",\t;|", key=first.count)
            lines = csv.reader(itertools.chain([first], text), delimiter=delimiter)
            header, end = next(lines), lines.line_num + passed
            while True:
                start = end + 1
                try:
                    cells = next(lines, None)
                except csv.Error as error:
                    yield Row(start, None, f"not CSV ({error})")
                    end = lines.line_num + passed
                    continue
                end = lines.line_num + passed
                if cells is None:
                    return
                if cells:
                    yield _row_of_cells(start, header, cells)

    def _sheet(self) -> Iterator[Row]:
        for number, columns in sheet_rows(self.path):
            yield Row(number, columns)

    def _parquet(self) -> Iterator[Row]:
        packed = self._shell is not Shell.NONE
        with pq.ParquetFile(io.BytesIO(self.open().read()) if packed else self.path) as table:
            number = 0
            for batch in table.iter_batches(batch_size=_PARQUET_BATCH):
                batch.validate(full=True)  # text that is not UTF-8 fails here, not in the middle of a row
                for columns in batch.to_pylist():
                    number += 1
                    yield Row(number, columns)


def _objects_in(head: bytes) -> int:
    """How many of the first lines are an object each. In a list with an object a line it is the last at most."""
    lines = [line for line in head.split(b"\n") if line.strip()]
    return sum(isinstance(_value_of(line), Mapping) for line in lines[:50])


def _is_wrapped(head: bytes) -> bool:
    """One object around the list of rows, as an API answers."""
    if _WRAPPED.match(head):
        return True
    lines = [line for line in head.split(b"\n") if line.strip()]
    value = _value_of(lines[0]) if len(lines) == 1 else None
    held = [value.get(key) for key in _WRAPPERS] if isinstance(value, dict) else []
    return any(isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows) for rows in held)


def _value_of(line: bytes) -> object:
    try:
        return _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def why_broken(row: bytes, error: Exception) -> str:
    """Why bytes are not a JSON object, in words."""
    try:
        row.decode("utf-8")
    except UnicodeDecodeError as wrong:
        return f"not UTF-8 (byte {wrong.start}: 0x{row[wrong.start]:02x}); is it in another encoding?"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if b"\\ud" in row.lower() and _holds_half_a_pair(row):
        return "holds half a surrogate pair, which is no character"
    return f"not JSON ({error})"


def _holds_half_a_pair(row: bytes) -> bool:
    try:
        json.dumps(json.loads(row), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        return False
    return False


def _row_of(number: int, raw: bytes) -> Row:
    try:
        value = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Row(number, None, why_broken(raw, error), raw)
    if not isinstance(value, dict):
        return Row(number, None, f"a JSON {type(value).__name__}; expected an object", raw)
    return Row(number, value, raw=raw)


def _row_of_cells(number: int, header: list[str], cells: list[str]) -> Row:
    raw = ",".join(cells)
    if len(cells) != len(header):
        return Row(number, None, f"{len(cells)} fields, and the header names {len(header)}", raw)
    try:
        raw.encode("utf-8")
    except UnicodeEncodeError:
        return Row(number, None, "not UTF-8; is it in another encoding?", raw.encode("utf-8", "surrogateescape"))
    return Row(number, dict(zip(header, cells, strict=True)))


def _salvaged(text: bytes, error: Exception) -> Iterator[Row]:
    """The elements of a broken list one by one, up to the break; the rest is one unreadable row."""
    rest = text.decode("utf-8", "surrogateescape")
    scan = json.JSONDecoder().raw_decode
    position, number = rest.find("[") + 1, 0
    while 0 < position < len(rest):
        while position < len(rest) and rest[position] in " \t\r\n,":
            position += 1
        if rest[position : position + 1] in ("]", ""):
            return
        number += 1
        try:
            _, end = scan(rest, position)
        except (ValueError, RecursionError):
            break
        yield _row_of(number, rest[position:end].encode("utf-8", "surrogateescape"))
        position = end
    raw = rest[max(position, 0) :].encode("utf-8", "surrogateescape")
    reason = f"{why_broken(text, error)}; nothing after this could be read ({len(raw):,} bytes)"
    yield Row(max(number, 1), None, reason, raw)
