"""What has come to a log since an earlier build of it, and which rows a build has that an earlier one had not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from raylign.feedback.build_result import KINDS, SPLITS
from raylign.feedback.clean.personal_data import hide_id, hide_ids
from raylign.feedback.clean.unusable import drop_forgotten
from raylign.feedback.settings import PrivacySettings
from raylign.feedback.tombstones import Tombstones


@dataclass(frozen=True, slots=True)
class Growth:
    """Judgements of a log against those of an earlier build, forgotten ones left out on both sides."""

    new: int
    gone: int  # the build had them, the log has not: it was rotated, or they were taken out


@dataclass(frozen=True, slots=True)
class RowGrowth:
    """Training rows of a build against those of an earlier one."""

    new: int
    kept: int
    gone: int  # the earlier build had them: forgotten, or lost to a rule


def growth(events: pl.DataFrame, privacy: PrivacySettings, forgotten: Tombstones, before: Path | None) -> Growth:
    """`events`: a log as it is read; `before`: the folder of the earlier build, None where there is none."""
    shown = hide_ids(events, privacy.user_salt) if privacy.redact else events
    gone = forgotten.events | {hide_id(event, privacy.user_salt) for event in forgotten.events}
    now = set(drop_forgotten(shown, forgotten.users, frozenset(gone)).kept["event_id"])
    known = built_events(before) if before else set()
    return Growth(len(now - known), len(known - now - gone))


def built_events(build: Path) -> set[str]:
    """Ids of all events of a build, used and dropped; of forgotten ones none is kept."""
    ids: set[str] = set()
    for path in [build / kind / f"{split}.jsonl" for kind in KINDS for split in SPLITS]:
        if path.is_file() and path.stat().st_size:  # builds of earlier versions lack a kind
            ids |= set(pl.read_ndjson(path, schema={"events": pl.List(pl.String)})["events"].explode().drop_nulls())
    dropped = build / "dropped.jsonl"
    if dropped.stat().st_size:
        ids |= set(pl.read_ndjson(dropped, schema={"event_id": pl.String})["event_id"].drop_nulls())
    return ids


def write_new_rows(build: Path, before: Path | None, kind: str, to: Path) -> RowGrowth:
    """The training rows of a kind that the earlier build did not have, into `to`, in the build's order."""
    known = _row_ids(before / kind / "train.jsonl") if before else set()
    lines = _lines(build / kind / "train.jsonl")
    ids = [str(json.loads(line)["id"]) for line in lines]
    fresh = [line for line, row in zip(lines, ids, strict=True) if row not in known]
    _write(to, fresh)
    return RowGrowth(len(fresh), len(lines) - len(fresh), len(known - set(ids)))


def write_sample(rows: Path, most: int, to: Path) -> int:
    """`most` rows of a build's file, or all, into `to`, in the file's order; how many those are.

    Drawn by a hash of each row's id: what was drawn from a smaller build is drawn from a larger one, or makes room.
    """
    lines = _lines(rows)
    drawn = sorted(lines, key=lambda line: hashlib.sha256(str(json.loads(line)["id"]).encode()).digest())[:most]
    kept = set(drawn)
    _write(to, [line for line in lines if line in kept])
    return len(drawn)


def _lines(path: Path) -> list[str]:
    """With their ends; a text may hold other line breaks than these (U+2028)."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return list(file)


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def _row_ids(path: Path) -> set[str]:
    return (
        set(pl.read_ndjson(path, schema={"id": pl.String})["id"]) if path.is_file() and path.stat().st_size else set()
    )
