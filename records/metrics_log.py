"""metrics.jsonl: one object a step, `{"step": N, "group/name": number or null, ...}`; the truth about a run.

A number that is not finite is written as null: the line of a step that went wrong is the one a person needs most, so
the step is kept, the value is not passed off as a number, and `ledger/non_finite_metrics` counts it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raylign.records.atomic import write_atomic

STEP = "step"
NON_FINITE = "ledger/non_finite_metrics"
_NAME = re.compile(r"[a-z][a-z0-9_]*(/[A-Za-z0-9_.@-]+)+")


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One step's line; None is a number that was not finite."""

    step: int
    values: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class MetricHistory:
    """What a metrics file holds, in step order, and how many of its lines could not be read."""

    rows: tuple[MetricRow, ...]
    unreadable_lines: int

    def series(self, name: str) -> tuple[tuple[int, float | None], ...]:
        """(step, value) of one metric, over the steps that have it."""
        return tuple((row.step, row.values[name]) for row in self.rows if name in row.values)

    def latest(self) -> Mapping[str, float]:
        """The newest value of each metric that has one."""
        return {name: value for row in self.rows for name, value in row.values.items() if value is not None}

    def names(self) -> tuple[str, ...]:
        """Every metric name, sorted."""
        return tuple(sorted({name for row in self.rows for name in row.values}))


def read_history(path: Path) -> MetricHistory:
    """Read a metrics file; a missing file is an empty history and a torn line is counted, not fatal.

    Of two lines with one step the later counts.
    """
    if not path.exists():
        return MetricHistory((), 0)
    rows: dict[int, MetricRow] = {}
    unreadable = 0
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            row = _parse(line)
            if row is None:
                unreadable += 1
            else:
                rows[row.step] = row
    return MetricHistory(tuple(rows[step] for step in sorted(rows)), unreadable)


def _parse(line: str) -> MetricRow | None:
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get(STEP), int):
        return None
    return MetricRow(found[STEP], {k: v for k, v in found.items() if k != STEP})


class MetricsLog:
    """The only writer of one metrics.jsonl. Not thread-safe: it belongs to the controller."""

    def __init__(self, path: Path, *, keep_to_step: int) -> None:
        """Open for appending after `keep_to_step`: a torn line and every later step are dropped (-1: all of them)."""
        self._path = path
        history = read_history(path)
        kept = [row for row in history.rows if row.step <= keep_to_step]
        self.dropped_steps = len(history.rows) - len(kept)
        self.dropped_lines = history.unreadable_lines
        if path.exists():
            write_atomic(path, "".join(_line(row) for row in kept))
        self._last = kept[-1] if kept else None
        self._file = path.open("a", encoding="utf-8")

    def append(self, step: int, values: Mapping[str, float]) -> MetricRow:
        """Write one step and flush. A second call for the newest step joins its line: there is one object a step.

        Raises ValueError for a name that is not group/name and for a step older than the newest.
        """
        bad = [name for name in values if not _NAME.fullmatch(name)]
        if bad:
            raise ValueError(f"metric names must be group/name in small letters, got {', '.join(map(repr, bad))}")
        if self._last is not None and step < self._last.step:
            raise ValueError(f"metrics of step {step} come after those of step {self._last.step}")
        row = MetricRow(step, {name: _finite(value) for name, value in values.items()})
        if self._last is not None and step == self._last.step:
            row = MetricRow(step, {**self._last.values, **row.values})
            self._replace_last(row)
        else:
            self._file.write(_line(row))
            self._file.flush()
        self._last = row
        return row

    def rewind(self, keep_to_step: int) -> None:
        """Drop every later step: it is done again."""
        self._file.close()
        kept = [row for row in read_history(self._path).rows if row.step <= keep_to_step]
        write_atomic(self._path, "".join(_line(row) for row in kept))
        self._last = kept[-1] if kept else None
        self._file = self._path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Force everything to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _replace_last(self, row: MetricRow) -> None:
        """Rare (evaluation before the first step, a resumed step), so the whole file may be written anew."""
        self._file.close()
        kept = [r for r in read_history(self._path).rows if r.step < row.step]
        write_atomic(self._path, "".join(_line(r) for r in [*kept, row]))
        self._file = self._path.open("a", encoding="utf-8")


def _finite(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _line(row: MetricRow) -> str:
    return json.dumps({STEP: row.step, **row.values}, allow_nan=False) + "\n"
