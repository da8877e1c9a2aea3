"""Who and what was asked to be forgotten: kept beside a build, honoured by every rebuild. Only hashes of people."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from raylign.conf.errors import DataError

FILE = "forgotten.json"


@dataclass(frozen=True, slots=True)
class Tombstones:
    """People's hashes and ids of events."""

    users: frozenset[str] = frozenset()
    events: frozenset[str] = frozenset()

    def __or__(self, other: Tombstones) -> Tombstones:
        return replace(self, users=self.users | other.users, events=self.events | other.events)

    def __len__(self) -> int:
        return len(self.users) + len(self.events)

    def to_json(self) -> str:
        """The text of forgotten.json."""
        return json.dumps({"users": sorted(self.users), "events": sorted(self.events)}, indent=1) + "\n"


def read_tombstones(file: Path) -> Tombstones:
    """Raises DataError when the file is no list of tombstones: silence would train on what was to be forgotten."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        users, events = content["users"], content["events"]
        if not all(isinstance(item, str) for item in [*users, *events]):
            raise TypeError("an entry is not text")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{file}: not a readable list of what to forget ({reason}); expected "
            '{"users": [hashes], "events": [ids]}.'
        ) from error
    return Tombstones(frozenset(users), frozenset(events))
