"""Which of the files given to a build are logs, and which speak of a log's events: reviews, judged turns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raylign.conf.errors import DataError
from raylign.feedback.judged_turns import KIND as TURNS
from raylign.feedback.reviews import KIND as REVIEWS

_LOOKED_AT = 1_000_000  # bytes: a longer first line is of a log


@dataclass(frozen=True, slots=True)
class Given:
    """The files given, each in the order in which they were."""

    logs: tuple[Path, ...]
    reviews: tuple[Path, ...]
    turns: tuple[Path, ...]

    @property
    def beside(self) -> tuple[Path, ...]:
        """All that are no logs."""
        return (*self.reviews, *self.turns)


def set_apart(files: Sequence[Path]) -> Given:
    """By the `kind` of each file's first line. Raises DataError when none is a log."""
    kinds = {file: _first_kind(file) for file in files}
    logs, reviews, turns = (
        tuple(file for file in files if wanted(kinds[file]))
        for wanted in (lambda kind: kind not in (REVIEWS, TURNS), REVIEWS.__eq__, TURNS.__eq__)
    )
    if files and not logs:
        what = "reviews" if reviews else "judged turns"
        raise DataError(f"{files[0]}: holds {what} alone; name the logs whose events they speak of as well.")
    return Given(logs, reviews, turns)


def _first_kind(file: Path) -> str:
    if not file.is_file():
        return ""
    with file.open("rb") as opened:
        first = opened.readline(_LOOKED_AT)
    try:
        found = json.loads(first)
    except (ValueError, RecursionError):
        return ""
    kind = found.get("kind") if isinstance(found, dict) else None
    return kind if isinstance(kind, str) else ""
