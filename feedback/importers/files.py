"""Which files a log is in: those that were named, and in folders those that may hold one; the others are listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from raylign.conf.errors import DataError
from raylign.feedback.importers.containers import Container
from raylign.feedback.importers.format import Format
from raylign.feedback.importers.packed import Shell, is_workbook, logical_suffix, members, shell_of

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".xlsx")
_SAMPLE_ROWS = 50


@dataclass(frozen=True, slots=True)
class Logs:
    """The files found. `others` stood in a folder under a name that says nothing: read if they hold the same format."""

    named: tuple[Container, ...]
    others: tuple[Container, ...] = ()
    unreadable: tuple[str, ...] = ()

    def of(self, chosen: Format) -> tuple[list[Container], tuple[str, ...]]:
        """The files to read, and for each of the others its name and why it is not read."""
        read, passed = list(self.named), list(self.unreadable)
        for file in self.others:
            rows = [row.columns for row in islice(file.rows(), _SAMPLE_ROWS) if row.columns is not None]
            alike = sum(chosen.recognises(columns) for columns in rows)
            if rows and 2 * alike >= len(rows):
                read.append(file)
            else:
                passed.append(f"{file.name} (not {chosen.name})")
        return sorted(read, key=lambda file: (file.path, file.name)) if self.others else read, tuple(passed)


def logs_in(paths: Sequence[Path]) -> Logs:
    """Files and the files in folders, in order. Raises DataError with all that are missing or hold nothing."""
    named: list[Container] = []
    others: list[Container] = []
    unreadable: list[str] = []
    problems = [] if paths else ["no file given; name at least one feedback log."]
    for path in paths:
        if path.is_file():
            found, left = _containers(path)
            named += found
            unreadable += left
        elif not path.is_dir():
            problems.append(f"{path}: there is no such file or folder.")
        else:
            before = len(named) + len(others)
            for file in sorted(file for file in path.rglob("*") if file.is_file()):
                shown = str(file.relative_to(path))
                if file.name.startswith("."):
                    unreadable.append(f"{shown} (hidden)")
                    continue
                if logical_suffix(file.name) in _SUFFIXES or file.suffix.lower() == ".zip":
                    found, left = _containers(file)
                    named += found
                    unreadable += left
                    continue
                try:
                    found, _ = _containers(file)
                except DataError:
                    found = []
                lines = [container for container in found if container.kind != "csv"]
                others += lines
                unreadable += [] if lines else [f"{shown} (no rows of JSON)"]
            if len(named) + len(others) == before:
                problems.append(f"{path}: the folder holds no {', '.join(_SUFFIXES)} file.")
    if problems:
        raise DataError(problems)
    return Logs(tuple(named), tuple(others), tuple(unreadable))


def _containers(path: Path) -> tuple[list[Container], list[str]]:
    """A file; a zip archive's logs one by one, and its other members by name."""
    if shell_of(path) is not Shell.ZIP:
        return [Container(path)], []
    names = members(path)
    if is_workbook(names) or len(names) < 2:
        return [Container(path)], []
    logs = [name for name in names if logical_suffix(name) in _SUFFIXES]
    left = [f"{path.name}/{name} (no log by its name)" for name in names if name not in logs]
    return [Container(path, name) for name in logs], left
