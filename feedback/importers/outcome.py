"""What reading a log gives back: events, what was quarantined and why, and counts that add up."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
from raylign.conf.errors import RunFailed
from raylign.feedback.events import Column, Event
from raylign.feedback.scores import ScoreRead

_EXCERPT_CHARS = 200

_QUARANTINE_COLUMNS: dict[str, Column] = {
    "file": pl.String,
    "line": pl.Int64,
    "reason": pl.String,
    "excerpt": pl.String,
}
QUARANTINE_SCHEMA = pl.Schema(_QUARANTINE_COLUMNS)
"""What was quarantined: file, line or row (from 1), why, and the first 200 characters with personal ids struck out."""


class RowProblem(ValueError):
    """This row, or one judgement in it, cannot become an event; the message says why."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """One judgement (or a whole row that holds none) that became no event."""

    file: str
    line: int
    reason: str
    excerpt: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one row holds. Every judgement in it is one event or one problem; a row without any has one problem."""

    line: int
    events: Sequence[Event] = ()
    problems: Sequence[str] = ()
    excerpt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportResult:
    """A log as events.

    A row (line, record or list element) holds one judgement in most formats; several in Argilla, Label Studio and
    others; none where its judgement was joined with an earlier row's (LangSmith's two halves of a comparison).
    `rows_by_judgements` says how many rows hold how many, and always

        rows_in      == sum of rows_by_judgements
        judgements_in == sum of judgements x rows == events + quarantined

    The companion file (answers, traces) is only looked things up in, so its bad rows are counted apart.
    """

    format: str
    events: pl.DataFrame  # EVENT_SCHEMA, in reading order
    quarantined: pl.DataFrame  # QUARANTINE_SCHEMA, in reading order
    rows_in: int
    rows_by_judgements: Mapping[int, int]
    files: tuple[Path, ...] = ()  # that were read
    passed_over: tuple[str, ...] = ()  # files of the folders given that were not read, each with why
    scores: tuple[ScoreRead, ...] = ()  # what each named score was read as
    companion_rows: int = 0
    companion_quarantined: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=QUARANTINE_SCHEMA))

    @property
    def judgements_in(self) -> int:
        """How many events there would be without a problem."""
        return sum(judgements * rows for judgements, rows in self.rows_by_judgements.items())

    def check(self) -> None:
        """Raise RunFailed when a row was lost or counted twice."""
        out = self.events.height + self.quarantined.height
        rows = sum(self.rows_by_judgements.values())
        if self.rows_in != rows or self.judgements_in != out:
            raise RunFailed(
                f"reading {self.format}: counts do not add up: {self.rows_in} rows read, {rows} accounted for; "
                f"{self.judgements_in} judgements, {self.events.height} events + {self.quarantined.height} quarantined."
            )


_PERSONAL = re.compile(
    r"""("[^"]*(?:user|annotator|author|judge|email|completed_by|owner)[^"]*"\s*:\s*)("(?:[^"\\]|\\.)*"?|-?\d[\d.eE+-]*)""",
    re.IGNORECASE,
)


def excerpt(row: bytes | str) -> str:
    """The beginning of a row for a person to recognise it by, values of fields that name people struck out.

    What people wrote is still in it: clean it before it is written anywhere.
    """
    text = row.decode("utf-8", "replace") if isinstance(row, bytes) else row
    # Twice what is kept: striking out may shorten it, and a pattern over a whole megabyte line would cost.
    struck = _PERSONAL.sub(r'\1"..."', text[: 2 * _EXCERPT_CHARS])
    return struck.encode("utf-8", "replace").decode("utf-8")[:_EXCERPT_CHARS]


def quarantine_frame(rejected: Sequence[Rejected]) -> pl.DataFrame:
    """As columns, in the given order."""
    return pl.DataFrame(
        {
            "file": [r.file for r in rejected],
            "line": [r.line for r in rejected],
            "reason": [r.reason for r in rejected],
            "excerpt": [r.excerpt for r in rejected],
        },
        schema=QUARANTINE_SCHEMA,
    )
