"""Whose judgements rows were made from: hashes of events and people, and one id for all of them.

Rows that `raylign feedback build` made carry the events they were made from; a filtered, merged or converted file does
as long as the columns are kept. A run keeps the ledger of what it trains on, so that it can be told later whose
judgements are in its model, without holding an id of an event.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from raylign.conf.errors import DataError
from raylign.data.loading import RawRow, read_rows

FILE = "data_ledger.json"
"""In a run's folder."""


@dataclass(frozen=True, slots=True)
class DataLedger:
    """What rows were made from."""

    events: frozenset[str] = frozenset()  # `event_digest` of each
    people: frozenset[str] = frozenset()  # hashes of the users whose conversations they are

    @property
    def id(self) -> str:
        """16 hex digits; empty where the rows name nothing."""
        if not self:
            return ""
        text = "\n".join([*sorted(self.events), "", *sorted(self.people)])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def __bool__(self) -> bool:
        return bool(self.events or self.people)

    def __or__(self, other: DataLedger) -> DataLedger:
        return DataLedger(self.events | other.events, self.people | other.people)

    def shared(self, other: DataLedger) -> int:
        """Events that both name; where none is, people."""
        return len(self.events & other.events) or len(self.people & other.people)

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps({"id": self.id, "events": sorted(self.events), "people": sorted(self.people)}) + "\n"


def event_digest(event_id: str) -> str:
    """16 hex digits of BLAKE2b over an event's id as rows have it."""
    return hashlib.blake2b(event_id.encode(), digest_size=8).hexdigest()


def ledger_of(rows: Iterable[tuple[Iterable[str], str | None]]) -> DataLedger:
    """Of rows as the ids of their events, and the hash of their user where one is known."""
    events: set[str] = set()
    people: set[str] = set()
    for ids, person in rows:
        events |= {event_digest(event) for event in ids}
        people |= {person} if person else set()
    return DataLedger(frozenset(events), frozenset(people))


def file_ledger(source: str) -> DataLedger:
    """Of a file or folder of rows that is here; empty where its rows name no event, and for the name of a data set.

    Raises DataError where it cannot be read.
    """
    return ledger_of(_named(source)) if source and Path(source).expanduser().exists() else DataLedger()


def read_ledger(path: Path) -> DataLedger | None:
    """None where there is none. Raises DataError for a damaged one: what it names would be taken for unused."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return DataLedger(frozenset(map(str, found["events"])), frozenset(map(str, found["people"])))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not a readable ledger ({error}).") from error


def _named(source: str) -> Iterator[tuple[list[str], str | None]]:
    for row in read_rows(source):
        events = row.columns.get("events") if isinstance(row, RawRow) and not row.cells else None
        if isinstance(events, list) and all(isinstance(event, str) for event in events):
            person = row.columns.get("user_hash") if isinstance(row, RawRow) else None
            yield events, person if isinstance(person, str) else None
