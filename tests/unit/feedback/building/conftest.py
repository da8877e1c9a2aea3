"""Logs to build from, and working frames, made of the few fields a test is about."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from raylign.feedback.build import build
from raylign.feedback.build_result import BuildResult
from raylign.feedback.events import EVENT_SCHEMA
from raylign.feedback.source import Source
from raylign.feedback.working import working_frame

Event = dict[str, object]
START = datetime(2026, 3, 1, tzinfo=UTC)


def event(number: int, kind: str, prompt: object = None, **fields: object) -> Event:
    """A native event; `prompt` is a question or turns as (role, content)."""
    asked = f"question {number}" if prompt is None else prompt
    turns = [("user", asked)] if isinstance(asked, str) else asked
    return {
        "event_id": f"e{number}",
        "kind": kind,
        "prompt": [{"role": role, "content": content} for role, content in turns],
        "response_a": f"answer {number}",
        "user_id": f"u{number}",
        "time": (START + timedelta(minutes=number)).isoformat(),
        **fields,
    }


@pytest.fixture
def make() -> Callable[..., Event]:
    return event


@pytest.fixture
def frame() -> Callable[[Sequence[Event]], pl.DataFrame]:
    """Native events (with `user_id` as hash) as a working frame."""

    def made(events: Sequence[Event]) -> pl.DataFrame:
        rows = []
        for number, given in enumerate(events, start=1):
            fields = {"user_hash": given.get("user_id"), "source": "native", "source_row": number, **given}
            fields["time"] = datetime.fromisoformat(str(given["time"])) if given["time"] else None
            rows.append({name: fields.get(name) for name in EVENT_SCHEMA})
        return working_frame(pl.DataFrame(rows, schema=EVENT_SCHEMA))

    return made


class Built:
    """A build and its files."""

    def __init__(self, folder: Path, result: BuildResult) -> None:
        self.folder = folder
        self.result = result

    def rows(self, kind: str, split: str | None = None) -> list[dict]:
        """Rows of a kind, of one split or all."""
        names = [split] if split else ["train", "eval", "test"]
        return [json.loads(line) for name in names for line in self.lines(f"{kind}/{name}.jsonl")]

    @property
    def dropped(self) -> dict[str, str]:
        """Event id -> rule, as dropped.jsonl says."""
        return {row["event_id"]: row["rule"] for row in map(json.loads, self.lines("dropped.jsonl"))}

    def lines(self, name: str) -> list[str]:
        """Of a JSONL file. Not by `splitlines`, which also cuts at characters that JSON leaves inside strings."""
        return [line for line in (self.folder / name).read_text().split("\n") if line]

    def everything(self) -> str:
        """All bytes of all files but source.json, as text."""
        files = [file for file in sorted(self.folder.rglob("*")) if file.is_file() and file.name != "source.json"]
        return "\n".join(file.read_text() for file in files)


@pytest.fixture
def built_type() -> type[Built]:
    return Built


@pytest.fixture
def run_build(tmp_path: Path) -> Callable[..., Built]:
    """Events (or raw lines) to a built folder."""
    count = iter(range(1000))

    def run(events: Sequence[Event | str], *overrides: str) -> Built:
        number = next(count)
        log = tmp_path / f"log{number}" / "log.jsonl"
        log.parent.mkdir()
        log.write_text("".join((e if isinstance(e, str) else json.dumps(e)) + "\n" for e in events))
        out = tmp_path / f"out{number}"
        return Built(out, build(Source(logs=(log,), overrides=overrides), out, with_report=False))

    return run
