"""Any feedback log to events: recognised by content, every row an event or quarantined with its reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from raylign.conf.errors import DataError
from raylign.feedback.events import EVENT_SCHEMA
from raylign.feedback.importers.columns import frame_of, problems_of
from raylign.feedback.importers.containers import Columns, Container
from raylign.feedback.importers.files import logs_in
from raylign.feedback.importers.format import Companion, Context, Format, scores_of
from raylign.feedback.importers.mapping import mapped_format
from raylign.feedback.importers.outcome import ImportResult, Parsed, Rejected, excerpt, quarantine_frame
from raylign.feedback.importers.overlap import FILE, repeats_by_content, repeats_by_id
from raylign.feedback.importers.score_table import SETTING, Collector, Scores
from raylign.feedback.importers.sniff import format_named, recognise
from raylign.feedback.importers.turns import THOUGHTS
from raylign.feedback.importers.values import CONTENT_ID, hasher
from raylign.feedback.scores import ScoreSetting

_CHUNK_EVENTS = 25_000

OnRows = Callable[[int], None]
"""Told how many rows more have been read, for a progress bar."""


def read_log(
    paths: Sequence[Path],
    *,
    format: str | None = None,
    mapping: Path | None = None,
    companion: Path | None = None,
    user_salt: str,
    scores: Mapping[str, ScoreSetting] | None = None,
    now: datetime | None = None,
    on_rows: OnRows = lambda rows: None,
) -> ImportResult:
    """Events of a log in one or several files of one format.

    `format` names it when it should not be guessed; `mapping` says how to read columns of one's own; `companion` is
    the second file some formats need. `scores` says what named scores mean where the log does not. People's ids are
    hashed with `user_salt`. Times more than a day after `now`
    (default: the clock) are impossible. Raises DataError when there is nothing to read or nobody knows the format.
    """
    if mapping is not None and format not in (None, "mapping"):
        raise DataError(f"format={format} and a mapping file exclude each other; give one of them.")
    found = logs_in(paths)
    if mapping is not None:
        chosen = mapped_format(mapping)
    else:
        chosen = format_named(format) if format is not None else recognise(found.named or found.others)
    files, passed_over = found.of(chosen)
    context = Context(chosen.name, hasher(user_salt))
    side = _Side()
    if _takes(chosen, companion):
        assert companion is not None and chosen.companion is not None
        side = _read_companion(companion, chosen.companion)
        context = replace(context, companion=side.by_id, companion_name=companion.name)
    context = replace(context, scores=_scores(chosen, files, context, scores or {}))
    tally = _Tally(now or datetime.now(UTC))
    for number, file in enumerate(files):
        for batch in _batches(_parse(chosen, file, context)):
            tally.add(number, file.name, batch)
            on_rows(len(batch))
    result = tally.result(chosen, [file.name for file in files], side)
    read = tuple(dict.fromkeys(file.path for file in files))
    return replace(result, passed_over=passed_over, files=read, scores=context.scores.table)


def _scores(
    chosen: Format, files: Sequence[Container], context: Context, settings: Mapping[str, ScoreSetting]
) -> Scores:
    """What each name means, from a first pass over all files. Raises DataError for settings of names nobody used."""
    collector = Collector()
    if chosen.scores is not None:
        for file in files:
            for row in file.rows():
                if row.columns is not None:
                    collector.add(scores_of(chosen, row.columns, context))
    found = collector.result(settings)
    missing = [name for name in settings if name not in found.by_name]
    if missing:
        known = ", ".join(list(found.by_name)[:10]) or f"none: {chosen.name} has no named scores"
        raise DataError(
            [f"{SETTING}: `{name[:60]}` is no score of this log; its scores are {known}." for name in missing]
        )
    return found


def _takes(chosen: Format, companion: Path | None) -> bool:
    """Whether there is a companion to read. Raises DataError when one is missing or not wanted."""
    wanted = chosen.companion
    if companion is not None and wanted is None:
        raise DataError(f"companion {companion}: format {chosen.name} holds everything in one file and takes none.")
    if companion is None and wanted is not None and wanted.required:
        raise DataError(
            f"format {chosen.name}: these rows hold judgements without prompts and answers; "
            f"give {wanted.holds} as the companion file."
        )
    return companion is not None


@dataclass(frozen=True, slots=True)
class _Side:
    """The companion file, read."""

    rows: int = 0
    by_id: dict[str, Columns] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)


def _read_companion(path: Path, companion: Companion) -> _Side:
    by_id: dict[str, Columns] = {}
    rejected = []
    rows = 0
    for row in Container(path).rows():
        rows += 1
        entries = companion.entries(row.columns) if row.columns is not None else ()
        found = {f"{key}": value for key, value in entries if isinstance(key, str | int)}
        if not found:
            reason = row.problem or "has no id to be found by"
            rejected.append(Rejected(path.name, row.line, reason, row.excerpt))
        for key, value in found.items():
            by_id[key] = companion.merge(by_id[key], value) if key in by_id else value
    if not by_id:
        raise DataError(f"companion {path}: none of its {rows} rows has an id; expected {companion.holds}.")
    return _Side(rows, by_id, rejected)


def _parse(chosen: Format, file: Container, context: Context) -> Iterator[Parsed]:
    if chosen.parse_lines is not None and file.kind == "jsonl":
        return chosen.parse_lines(file.lines(), context)
    return chosen.parse(file.rows(), context)


def _batches(rows: Iterator[Parsed]) -> Iterator[list[Parsed]]:
    batch: list[Parsed] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _CHUNK_EVENTS:
            yield batch
            batch = []
    if batch:
        yield batch


class _Tally:
    """Collects batches as columns and keeps count."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._frames: list[pl.DataFrame] = [frame_of([]).with_columns(pl.lit(0, pl.Int32).alias(FILE))]
        self._rejected: list[tuple[int, Rejected]] = []
        self._rows: Counter[int] = Counter()  # judgements in a row -> rows

    def add(self, file: int, name: str, batch: Sequence[Parsed]) -> None:
        """Count every row, keep the events that hold, put the others aside."""
        for row in batch:
            self._rows[len(row.events) + len(row.problems)] += 1
            for problem in row.problems:
                self._rejected.append((file, Rejected(name, row.line, problem, row.excerpt)))
        events = _without_thoughts(frame_of([event for row in batch for event in row.events]))
        problems = problems_of(events, self._now)
        bad = events.filter(problems.is_not_null())
        for event, reason in zip(bad.iter_rows(named=True), problems.drop_nulls(), strict=True):
            self._rejected.append((file, Rejected(name, event["source_row"], reason, _shown(event))))
        self._frames.append(events.filter(problems.is_null()).with_columns(pl.lit(file, pl.Int32).alias(FILE)))

    def result(self, chosen: Format, names: Sequence[str], side: _Side) -> ImportResult:
        """Compare ids over all files, put everything in reading order and check that nothing was lost."""
        events = pl.concat(self._frames, rechunk=False)
        self._frames = []
        if chosen.ids_from_content:
            if len(names) > 1:
                events = self._without(events, repeats_by_content(events), names, "the same judgement")
            events = _numbered(events)
        events = self._without(events, repeats_by_id(events, chosen.several), names, "duplicate id")
        self._rejected.sort(key=lambda entry: (entry[0], entry[1].line))
        result = ImportResult(
            format=chosen.name,
            events=events.select(EVENT_SCHEMA.names()),
            quarantined=quarantine_frame([rejected for _, rejected in self._rejected]),
            rows_in=sum(self._rows.values()),
            rows_by_judgements=dict(sorted(self._rows.items())),
            companion_rows=side.rows,
            companion_quarantined=quarantine_frame(side.rejected),
        )
        result.check()
        return result

    def _without(self, events: pl.DataFrame, repeats: pl.DataFrame, names: Sequence[str], what: str) -> pl.DataFrame:
        """Events without what was said elsewhere; each of those is put aside with where that is."""
        if repeats.is_empty():
            return events
        kept = events.select(FILE, "source_row")[repeats["kept"]].rename({FILE: "kept_file", "source_row": "kept_row"})
        for event in pl.concat([events[repeats["place"]], kept], how="horizontal").iter_rows(named=True):
            there = f"{names[event['kept_file']]}, line {event['kept_row']}"
            before = (event["kept_file"], event["kept_row"]) <= (event[FILE], event["source_row"])
            says = f"it was in {there}, already" if before else f"it is in {there} as it was last"
            reason = f"{what} `{event['event_id'][:60]}`: {says}"
            rejected = Rejected(names[event[FILE]], event["source_row"], reason, _shown(event))
            self._rejected.append((event[FILE], rejected))
        gone = repeats["place"].implode()
        return events.filter(~pl.int_range(pl.len(), dtype=pl.UInt32).is_in(gone))


def _without_thoughts(events: pl.DataFrame) -> pl.DataFrame:
    """Answers without the reasoning they open with: it is not imitated as words, whatever format it comes in."""
    return events.with_columns(pl.col("response_a", "response_b").str.replace(THOUGHTS, ""))


def _numbered(events: pl.DataFrame) -> pl.DataFrame:
    """Equal rows numbered after the id, in reading order."""
    made = pl.col("event_id").str.contains(CONTENT_ID)
    again = pl.int_range(pl.len()).over("event_id")
    numbered = pl.format("{}#{}", "event_id", again + 1)
    return events.with_columns(pl.when(made & (again > 0)).then(numbered).otherwise("event_id").alias("event_id"))


_SHOWN = ("event_id", "kind", "choice", "thumb", "rating", "time", "response_a", "response_b")


def _shown(event: dict[str, object]) -> str:
    parts = {name: event[name] for name in _SHOWN if event[name] is not None}
    return excerpt(json.dumps(parts, ensure_ascii=False, default=str))
