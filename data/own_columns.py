"""`data.columns`: the columns that the rows are read from, by names of the user's own.

`{prompt: question}` reads `prompt` from the column `question`; `{ground_truth: reward_model.answer}` from inside a
column, unless a column has that whole name. The file's columns stay in the row under their own names, so that reward
functions find them; one that a mapping replaces or makes ambiguous does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from raylign.conf.errors import DataError
from raylign.data.csv_rows import typed
from raylign.data.loading import RawRow

_ANSWERED = frozenset({"prompt", "completion"})
_SHOWN = 12  # columns named in a message


class OwnColumns:
    """Applies a mapping to every row of a data set and remembers which of its columns were ever there."""

    def __init__(self, mapping: Mapping[str, str]) -> None:
        self._mapping = dict(mapping)
        self._missing = dict(mapping)  # of which no row has had the column so far
        self._names: dict[str, None] = {}  # every column seen, in order

    def apply(self, row: RawRow) -> RawRow:
        """The row with the columns of the mapping under their standard names, and the cells of a table typed."""
        if self._mapping:
            row = self._renamed(row)
        return replace(row, columns=typed(row.columns)) if row.cells else row

    def _renamed(self, row: RawRow) -> RawRow:
        self._names |= dict.fromkeys(row.columns)
        columns = {name: value for name, value in row.columns.items() if name not in self._hidden()}
        for name, own in self._mapping.items():
            found, value = _look_up(row.columns, own)
            if found:
                columns[name] = value
                self._missing.pop(name, None)
        return replace(row, columns=columns)

    def explain(self, row: RawRow) -> str:
        """Which columns of the mapping this row does not have, for the reason it cannot be used; "" for none."""
        absent = [f"`{name}` from `{own}`" for name, own in self._mapping.items() if not _look_up(row.columns, own)[0]]
        return f" (data.columns reads {', '.join(absent)}, which is not there)" if absent else ""

    def refuse_missing(self, data: str) -> None:
        """Raise DataError when a column of the mapping is in no row of the data set."""
        if not self._missing:
            return
        names = list(self._names)
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        raise DataError(
            [
                f"data.columns={{{name}: {own}}}: no row of {data} has a column {own}; there are {shown or 'none'}."
                for name, own in self._missing.items()
            ]
        )

    def _hidden(self) -> frozenset[str]:
        """Standard columns of the file that would compete with what the mapping names."""
        mapped = frozenset(self._mapping)
        rivals = (_ANSWERED if "messages" in mapped else frozenset()) | (
            frozenset({"messages"}) if mapped & _ANSWERED else frozenset()
        )
        return mapped | (rivals - mapped)


def _look_up(columns: Mapping[str, object], name: str) -> tuple[bool, object]:
    """Whether there is such a column, or a field within one by a dotted name, and its value."""
    if name in columns:
        return True, columns[name]
    head, dot, rest = name.partition(".")
    inside = columns.get(head)
    return _look_up(inside, rest) if dot and isinstance(inside, Mapping) else (False, None)
