"""What a build was made of and what it made, to be looked up: its logs read again and redacted, its rows from files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
from raylign.conf.errors import DataError
from raylign.feedback.build import PART, read
from raylign.feedback.build_result import KINDS, SPLITS, read_result
from raylign.feedback.clean.personal_data import hide_id, hide_ids
from raylign.feedback.clean.unusable import drop_forgotten
from raylign.feedback.events import Column
from raylign.feedback.forget import named_logs_exist
from raylign.feedback.given import set_apart
from raylign.feedback.overrides import parse_settings
from raylign.feedback.privacy import redactor_of
from raylign.feedback.result import signal
from raylign.feedback.reviews import Review, Verdict, append_review, marked_wrong
from raylign.feedback.settings import BuildSettings
from raylign.feedback.source import Source
from raylign.feedback.tombstones import FILE, read_tombstones
from raylign.feedback.turns import TURNS_TYPE
from raylign.feedback.working import working_frame_of
from raylign.feedback.writing import file_hash

USED = "used"
"""`fate` of an event that a row was made of; otherwise it is the rule that dropped it."""

_BESIDE = ("event_id", "reasons", "comment", "seconds_taken", "shown_left", "surface", "source_row")
_READ: dict[str, Column] = {
    "id": pl.String, "weight": pl.Float64, "events": pl.List(pl.String), "rules": pl.List(pl.String),
}  # fmt: skip
_TEXTS: dict[str, dict[str, Column]] = {
    "sft": {"messages": TURNS_TYPE},
    "pairs": {"prompt": TURNS_TYPE, "chosen": TURNS_TYPE, "rejected": TURNS_TYPE},
    "kto": {"prompt": TURNS_TYPE, "completion": TURNS_TYPE, "label": pl.Boolean},
    "teacher": {"prompt": TURNS_TYPE, "teacher_prompt": TURNS_TYPE},
}
_ROW = ("kind", "split", "id", "weight", "events", "rules", "turns", "answer", "other", "label")


@dataclass(slots=True)
class Shelf:
    """A build to browse.

    `events`: a redacted working frame with `signal`, `fate` and what stood beside; comments and reasons are as they
    were written. `rows`: `_ROW`, one line a row of any kind; `turns` is a list of turns.
    """

    folder: Path
    events: pl.DataFrame
    rows: pl.DataFrame
    reviews: Path  # where new reviews go
    redact: bool
    changed: bool  # a log is not what the build was made from
    wrong: set[str] = field(default_factory=set)  # ids of events

    def mark(self, events: tuple[str, ...], verdict: Verdict, comment: str) -> None:
        """Write a review, then know of it."""
        append_review(self.reviews, Review(events, verdict, comment))
        self.wrong = self.wrong | set(events) if verdict is Verdict.WRONG else self.wrong - set(events)

    def event(self, event_id: str) -> dict[str, object] | None:
        """One event by id."""
        found = self.events.filter(pl.col("event_id") == event_id)
        return found.row(0, named=True) if found.height else None

    def row(self, kind: str, row_id: str) -> dict[str, object] | None:
        """One row by kind and id."""
        found = self.rows.filter((pl.col("kind") == kind) & (pl.col("id") == row_id))
        return found.row(0, named=True) if found.height else None


def open_shelf(folder: Path, reviews: Path | None = None) -> Shelf:
    """Read a build's logs again, as they may be shown: redacted, without what was forgotten or not consented to.

    Raises DataError when the folder is no build or a log is gone.
    """
    source = Source.read(folder)
    try:
        result = read_result(folder)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: not the folder of a build (build.json is missing or unreadable).") from error
    named_logs_exist(source)
    settings = parse_settings(source.overrides)
    given = set_apart(source.logs)
    new = reviews or folder.with_name(f"{folder.name}.reviews.jsonl")
    files = tuple(dict.fromkeys((*given.reviews, *((new.resolve(),) if new.is_file() else ()))))
    logs = [log for log in source.logs if log.is_file() and log not in given.reviews]
    hashes = {file.sha256 for file in result.inputs}
    return Shelf(
        folder=folder,
        events=_events(folder, source, settings),
        rows=_rows(folder),
        reviews=new,
        redact=settings.privacy.redact,
        changed=any(file_hash(log)[0] not in hashes for log in logs),
        wrong=set(marked_wrong(files)),
    )


def _events(folder: Path, source: Source, settings: BuildSettings) -> pl.DataFrame:
    private = settings.privacy
    redactor = redactor_of(private)
    events = read(source, settings).events
    events = hide_ids(events, private.user_salt) if private.redact else events
    beside = events.select(_BESIDE).with_columns(redactor.names_in(events["comment"]))
    forgotten = read_tombstones(folder / FILE)
    gone = forgotten.events | {hide_id(event, private.user_salt) for event in forgotten.events}
    parts = list(events.iter_slices(PART)) or [events]
    del events  # taken apart, so that its texts are not in memory twice
    work = drop_forgotten(working_frame_of(parts), forgotten.users, frozenset(gone)).kept
    work = work.filter(pl.col("consent").fill_null(True))
    work = redactor.frame(work).frame
    dropped = pl.read_ndjson(folder / "dropped.jsonl", schema={"event_id": pl.String, "rule": pl.String})
    work = work.join(beside, on="event_id", how="left", maintain_order="left")
    work = work.join(dropped.unique("event_id"), on="event_id", how="left", maintain_order="left")
    return work.with_columns(signal=signal(), fate=pl.col("rule").fill_null(USED)).drop("rule")


def _rows(folder: Path) -> pl.DataFrame:
    frames = []
    for kind in KINDS:
        for split in SPLITS:
            file = folder / kind / f"{split}.jsonl"
            if file.is_file() and file.stat().st_size:
                frames.append(_as_rows(kind, split, _read(file, _READ | _TEXTS[kind])))
    return pl.concat(frames, how="vertical_relaxed") if frames else pl.DataFrame(schema=dict.fromkeys(_ROW, pl.String))


def _read(file: Path, schema: dict[str, Column]) -> pl.DataFrame:
    """A file of rows; calls of tools, which no column of turns has, are words of their turn here."""
    written = file.read_bytes()
    if b'"tool_calls"' not in written:
        return pl.read_ndjson(file, schema=schema)
    rows = [json.loads(line) for line in written.split(b"\n") if line]
    turns = [name for name, kind in schema.items() if kind == TURNS_TYPE]
    return pl.DataFrame(
        [row | {name: [_in_words(turn) for turn in row[name]] for name in turns} for row in rows], schema=schema
    )


def _in_words(turn: dict[str, object]) -> dict[str, str]:
    fields = {name: value for name, value in turn.items() if name not in ("role", "content")}
    told = [json.dumps(fields, ensure_ascii=False)] if fields else []
    return {"role": f"{turn['role']}", "content": "\n".join([*filter(None, [f"{turn['content']}"]), *told])}


def _as_rows(kind: str, split: str, rows: pl.DataFrame) -> pl.DataFrame:
    def said(column: str) -> pl.Expr:
        return pl.col(column).list.last().struct.field("content")

    if kind == "sft":
        turns, answer, other = pl.col("messages").list.head(pl.col("messages").list.len() - 1), said("messages"), None
    elif kind == "pairs":
        turns, answer, other = pl.col("prompt"), said("chosen"), said("rejected")
    elif kind == "teacher":
        turns, answer, other = pl.col("prompt"), said("teacher_prompt"), None
    else:
        turns, answer, other = pl.col("prompt"), said("completion"), None
    return rows.select(
        pl.lit(kind).alias("kind"),
        pl.lit(split).alias("split"),
        "id",
        pl.col("weight").cast(pl.Float64),
        "events",
        "rules",
        turns.alias("turns"),
        answer.alias("answer"),
        pl.lit(None, pl.String).alias("other") if other is None else other.alias("other"),
        (pl.col("label") if kind == "kto" else pl.lit(None)).cast(pl.Boolean).alias("label"),
    )
