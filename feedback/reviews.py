"""Reviews: what somebody who looked at a log's events said about the events themselves, after the fact.

One line a review: {"event_id", "kind": "review", "reviews": [event ids], "verdict": "wrong" or "right", "comment",
"time"}. A file of them is given to a build like a log; an event that was marked wrong last is used for nothing. Written
by `raylign feedback browse`.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

import polars as pl
from raylign.conf.errors import DataError
from raylign.feedback.filtering import Filtered, apply_rules

KIND = "review"
RULE = "reviewed_wrong"


class Verdict(Enum):
    """What a review says of events."""

    WRONG = "wrong"
    RIGHT = "right"  # takes back an earlier `wrong`


@dataclass(frozen=True, slots=True)
class Review:
    """One click. `events` are ids as a build shows them."""

    events: tuple[str, ...]
    verdict: Verdict
    comment: str = ""


def append_review(file: Path, review: Review, now: datetime | None = None) -> None:
    """Add one line, on disk when this returns. The file is readable by its owner only: comments may name people."""
    line = {
        "event_id": f"review-{secrets.token_hex(8)}",
        "kind": KIND,
        "reviews": list(review.events),
        "verdict": review.verdict.value,
        "comment": review.comment,
        "time": (now or datetime.now(UTC)).isoformat(timespec="seconds"),
    }
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as out:
        out.write(json.dumps(line, ensure_ascii=False) + "\n")
        out.flush()
        os.fsync(out.fileno())


def marked_wrong(files: Sequence[Path]) -> frozenset[str]:
    """Ids of events whose last review says wrong, in the order of files and lines.

    Raises DataError for a line that is no review: passed over, it would train on what was marked wrong.
    """
    verdicts: dict[str, Verdict] = {}
    for file in files:
        for review in _read(file):
            verdicts |= dict.fromkeys(review.events, review.verdict)
    return frozenset(event for event, verdict in verdicts.items() if verdict is Verdict.WRONG)


def _read(file: Path) -> Iterator[Review]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
                events, verdict = found["reviews"], Verdict(found["verdict"])
                if found["kind"] != KIND or not isinstance(events, list) or not all(isinstance(e, str) for e in events):
                    raise ValueError("kind or reviews are not a review's")
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{file}, line {number}: not a review ({type(error).__name__}: {str(error)[:80]}); expected "
                    '{"kind": "review", "reviews": [event ids], "verdict": "wrong" or "right"}.'
                ) from error
            yield Review(tuple(events), verdict, str(found.get("comment") or ""))


def drop_reviewed(work: pl.DataFrame, wrong: frozenset[str]) -> Filtered:
    """A working frame without the events that were marked wrong."""
    return apply_rules(work, {RULE: pl.col("event_id").is_in(sorted(wrong))})
