"""The first sheet of an Excel workbook as rows: its first row that is not empty names the columns."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from pathlib import Path

import python_calamine
from raylign.conf.errors import DataError


def sheet_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """The number of each row that is not empty, and its cells by column. Raises DataError for what is no workbook."""
    try:
        workbook = python_calamine.load_workbook(path)
        cells = workbook.get_sheet_by_index(0).to_python(skip_empty_area=False)
    except (python_calamine.CalamineError, OSError, IndexError) as error:
        raise DataError(f"{path}: is an Excel workbook that cannot be read ({error}); save it as CSV UTF-8.") from error
    header: list[str] | None = None
    for number, row in enumerate(cells, start=1):
        if all(cell == "" or cell is None for cell in row):
            continue
        if header is None:
            header = [f"{cell}".strip() or f"column {place}" for place, cell in enumerate(row, start=1)]
            continue
        yield number, {name: _value(cell) for name, cell in zip(header, row, strict=False)}


def other_sheets(path: Path) -> list[str]:
    """The names of the sheets that are not read."""
    return list(python_calamine.load_workbook(path).sheet_names[1:])


def _value(cell: object) -> object:
    """As JSON would have it; Excel keeps whole numbers as decimals."""
    if isinstance(cell, float) and cell.is_integer():
        return int(cell)
    if isinstance(cell, datetime):
        return cell
    if isinstance(cell, date | time):
        return cell.isoformat()
    return cell.total_seconds() if isinstance(cell, timedelta) else cell
