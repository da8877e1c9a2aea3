"""A simulated log as events, columns and a file, with the truth it was made from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from enum import Enum
from pathlib import Path

import polars as pl
from raylign.data.types import Message
from raylign.feedback.events import EVENT_SCHEMA, Event
from raylign.feedback.simulate.people import Habits


@dataclass(frozen=True, slots=True)
class Truth:
    """What was planted. Keys of `habits` are the hashes that the events carry."""

    habits: Mapping[str, Habits]
    repeated_events: Mapping[str, str]  # a repeated event's id -> the id of the one it repeats
    copied_questions: Mapping[str, str]  # a conversation -> the conversation whose question it copies
    better: Mapping[str, str]  # side-by-side event -> "a" or "b", by the judge's own taste; equal tastes are left out


@dataclass(frozen=True, slots=True)
class SimulatedLog:
    """Events in the order of time."""

    events: tuple[Event, ...]
    truth: Truth

    def frame(self) -> pl.DataFrame:
        """The events as EVENT_SCHEMA columns."""
        names = EVENT_SCHEMA.names()
        return pl.DataFrame(
            [{name: _plain(getattr(event, name)) for name in names} for event in self.events], schema=EVENT_SCHEMA
        )

    def write(self, path: Path) -> None:
        """Native JSONL: one event a line, absent fields left out."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in json_lines(self.events)), encoding="utf-8")


def json_lines(events: Iterable[Event]) -> Iterable[str]:
    """Each event as one JSON object with the names of `Event`; times in ISO 8601, enums by value."""
    for event in events:
        row = {f.name: getattr(event, f.name) for f in fields(Event) if f.name != "source_row"}
        given = {name: value for name, value in row.items() if value is not None and value != ()}
        yield json.dumps(given, ensure_ascii=False, default=_json)


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Message):
        return {"role": value.role, "content": value.content}
    return value


def _json(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else _plain(value)
