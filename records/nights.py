"""Where a loop stands on disk: one folder a night, with what has been done in it, what for, and what came of it.

<folder>/night-0001/night.json   each stage as it ended; beside it build/, eval.html,
                               audit-NAME.json, compare.html, gate.json and their pages
<folder>/runs/night-0001-NAME    the runs
<folder>/eval-results            answers to suites, shared by all nights
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from raylign.conf.errors import UserError
from raylign.records.atomic import write_atomic


@dataclass(frozen=True, slots=True)
class DoneStage:
    """A stage that has ended."""

    name: str  # build, train NAME, evaluate, audit NAME, compare, gate, promote
    when: str  # UTC, ISO 8601
    said: str  # one sentence
    key: str = ""  # hash of everything it was made from, where another night may use what it made
    made: str = ""  # the folder or file it made, or used


@dataclass(frozen=True, slots=True)
class Night:
    """One pass of the loop."""

    number: int
    began: str  # UTC, ISO 8601
    settings: str  # hash of the loop's settings
    forgotten: str  # hash of what was to be forgotten
    stages: tuple[DoneStage, ...] = ()
    candidate: str = ""  # the candidate's folder
    digest: str = ""  # of its content
    outcome: str = ""  # a sentence; empty: the night is not over

    def stage(self, name: str) -> DoneStage | None:
        """A stage that has ended, by name."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def made(self, name: str) -> str:
        """What a stage that has ended made. Raises KeyError for one that has not."""
        stage = self.stage(name)
        if stage is None:
            raise KeyError(name)
        return stage.made

    def model(self, training: str) -> str:
        """The model of a training that has ended. Raises KeyError."""
        return self.made(f"train {training}")


@dataclass(frozen=True, slots=True)
class Nights:
    """All nights of a loop's folder."""

    folder: Path

    def all(self) -> tuple[Night, ...]:
        """The first one first. Raises UserError for a damaged record."""
        return tuple(_read(path) for path in sorted(self.folder.glob("night-*/night.json")))

    def path(self, night: Night) -> Path:
        """The night's folder."""
        return self.folder / f"night-{night.number:04d}"

    def begin(self, settings: str, forgotten: str) -> Night:
        """A new night, on disk."""
        number = max((night.number for night in self.all()), default=0) + 1
        night = Night(number, now(), settings, forgotten)
        self.path(night).mkdir(parents=True, exist_ok=True)
        return self.keep(night)

    def done(self, night: Night, name: str, said: str, *, key: str = "", made: str = "") -> Night:
        """The night with one stage more, on disk."""
        return self.keep(replace(night, stages=(*night.stages, DoneStage(name, now(), said, key, made))))

    def keep(self, night: Night) -> Night:
        """Write it; returns it."""
        text = json.dumps(asdict(night), ensure_ascii=False, indent=1) + "\n"
        write_atomic(self.path(night) / "night.json", text)
        return night


def made_before(nights: Sequence[Night], key: str) -> tuple[Night, DoneStage] | None:
    """The newest stage of any night that was made from the same things and that is still there."""
    for night in reversed(nights):
        for stage in night.stages:
            if key and stage.key == key and Path(stage.made).exists():
                return night, stage
    return None


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(path: Path) -> Night:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Night(**{**found, "stages": tuple(DoneStage(**stage) for stage in found["stages"])})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: it is damaged ({error}); move the night's folder away to leave it out.") from error
