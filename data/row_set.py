"""Reads a whole data set through one builder: bad rows aside, overlong rows by policy, everything counted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from raylign.conf.errors import DataError
from raylign.conf.schema import DataConfig, Overlong
from raylign.data.loading import RawRow, content_hash, read_rows
from raylign.data.own_columns import OwnColumns
from raylign.data.quarantine import BadRow, LoadReport, Quarantine, as_text
from raylign.data.row_fields import RowError

T = TypeVar("T")

_EXAMPLES = 3


class RowBuilder(Protocol[T]):
    """Makes the items of one kind of data set."""

    @property
    def max_tokens(self) -> int: ...
    @property
    def max_tokens_key(self) -> str:
        """The setting that holds the limit, for messages."""
        ...

    def build(self, row: RawRow) -> tuple[T, ...]:
        """One item, or several of a conversation. Raises RowError for a row that cannot be used."""
        ...

    def num_tokens(self, item: T) -> int: ...
    def truncate_left(self, item: T) -> T | None:
        """The item within the limit; None when what must stay is longer than that."""
        ...

    def fingerprint(self, item: T) -> str:
        """All of the item that training can see, as text."""
        ...


@dataclass(frozen=True, slots=True)
class RowSet(Generic[T]):
    """The usable items in reading order."""

    items: tuple[T, ...]
    digest: str
    report: LoadReport


def read_row_set(name: str, config: DataConfig, builder: RowBuilder[T], quarantine: Path | None) -> RowSet[T]:
    """Every usable row of `name`.

    Raises DataError for a set that is empty or unreadable, holds more bad rows than `config.max_bad_fraction`, has
    overlong rows under `overlong=error` or more of them than `config.max_overlong_fraction`, or has nothing left.
    """
    items: list[T] = []
    origins: list[int] = []
    overlong: list[BadRow] = []
    dropped = total = 0
    own = OwnColumns(config.columns)
    with Quarantine(quarantine) as bad:
        for row in read_rows(name):
            total += 1
            if isinstance(row, BadRow):
                bad.add(row.number, row.source, row.reason, row.row)
                continue
            given, row = row, own.apply(row)
            try:
                built = builder.build(row)
            except RowError as error:
                bad.add(row.number, row.source, f"{error}{own.explain(given)}", given.columns)
                continue
            longest = max(builder.num_tokens(item) for item in built)
            fitting = [_fitting(item, config, builder) for item in built]
            if longest > builder.max_tokens:
                reason = f"{longest} tokens, {builder.max_tokens_key}={builder.max_tokens}"
                overlong.append(BadRow(row.number, row.source, reason, as_text(row.columns)[:200]))
            items += (left := [item for item in fitting if item is not None])
            origins += [row.number] * len(left)
            dropped += not left
        if total == 0:
            raise DataError(f"data {name}: there are no rows.")
        own.refuse_missing(name)
        bad.refuse_past(config.max_bad_fraction, total, name)
    kept = total - len(bad.rows) - dropped
    examples = tuple(bad.rows[:_EXAMPLES])
    report = LoadReport(name, total, kept, len(bad.rows), len(overlong), dropped, examples, tuple(origins))
    _refuse(config, builder.max_tokens_key, report, overlong)
    return RowSet(tuple(items), content_hash(builder.fingerprint(item) for item in items), report)


def _fitting(item: T, config: DataConfig, builder: RowBuilder[T]) -> T | None:
    """The item within the limit, or None where it is left out."""
    if builder.num_tokens(item) <= builder.max_tokens:
        return item
    return builder.truncate_left(item) if config.overlong is Overlong.truncate_left else None


def _refuse(config: DataConfig, key: str, report: LoadReport, overlong: list[BadRow]) -> None:
    if overlong and config.overlong is Overlong.error:
        problems = [
            f"data {report.name}: {len(overlong)} of {report.total} rows are longer than {key} allows; raise it, or "
            "set data.overlong to drop or truncate_left."
        ]
        raise DataError(problems + [f"{row.source}: {row.reason}" for row in overlong[:_EXAMPLES]])
    if report.kept > 0 and report.overlong > config.max_overlong_fraction * report.total:
        problems = [
            f"data {report.name}: {report.overlong} of {report.total} rows are longer than {key} allows, a larger "
            f"share than data.max_overlong_fraction={config.max_overlong_fraction:g}; raise {key}, or the limit."
        ]
        raise DataError(problems + [f"{row.source}: {row.reason}" for row in overlong[:_EXAMPLES]])
    if report.kept == 0:
        raise DataError(
            f"data {report.name}: no usable row is left of {report.total} ({report.bad} bad, {report.dropped} longer "
            f"than {key} allows)."
        )
