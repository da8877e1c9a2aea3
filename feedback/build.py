"""Feedback logs to training data: read, clean, split, apply the rules by signal, write, account for every event.

    logs -> events -> (consent, redaction, duplicates) -> splits -> rows by signal -> (refusals, caps) -> files
                 \\-> quarantine.jsonl       every drop, by rule -> dropped.jsonl, build.json, card, report

The same input and settings give the same bytes.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl
from raylign.conf.errors import ConfigError, UserError
from raylign.data.data_ledger import event_digest
from raylign.feedback.ai_mixing import with_ai_marks, with_ai_weight, without_unwanted
from raylign.feedback.ai_votes import SOURCE as AI_SOURCE
from raylign.feedback.build_result import KINDS, BuildResult, InputFile
from raylign.feedback.card import write_card
from raylign.feedback.clean.personal_data import hide_id, hide_ids, redact_excerpt, redact_text
from raylign.feedback.clean.unusable import drop_forgotten
from raylign.feedback.cleaning import clean_events, clean_rows, place_events
from raylign.feedback.cut_answers import with_cut_flags
from raylign.feedback.given import set_apart
from raylign.feedback.importers import ImportResult, read_log
from raylign.feedback.judged_turns import called_corrections
from raylign.feedback.ledger import Ledger
from raylign.feedback.overrides import parse_settings
from raylign.feedback.privacy import redactor_of
from raylign.feedback.report import write_report
from raylign.feedback.result import Parts, make_result
from raylign.feedback.reviews import marked_wrong
from raylign.feedback.scores import ScoreRead, parse_scores
from raylign.feedback.settings import BuildSettings
from raylign.feedback.signals import make_rows, unused
from raylign.feedback.source import SOURCE, Source
from raylign.feedback.tombstones import FILE as TOMBSTONES
from raylign.feedback.tombstones import Tombstones, read_tombstones
from raylign.feedback.trust.noise import noise
from raylign.feedback.weights import balanced, choices_of, with_vote_weights
from raylign.feedback.working import REST, public_events, working_frame_of
from raylign.feedback.writing import file_hash, with_ids, write_kind

STEPS = ("reading", "redacting", "cleaning", "splitting", "making rows", "writing", "reporting")

_SHOWN = ("reason", "excerpt")

PART = 25_000
"""Events of a log that become working rows at a time."""

OnStep = Callable[[str], None]
OnRows = Callable[[int], None]
OnForgotten = Callable[[frozenset[str]], None]
"""Receives `event_digest` of every forgotten event that the logs have."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Receives how far a build is."""

    on_step: OnStep = field(default=lambda step: None)
    on_rows: OnRows = field(default=lambda rows: None)
    on_forgotten: OnForgotten = field(default=lambda events: None)  # of what was forgotten now or before


def build(
    source: Source,
    out: Path,
    *,
    watch: Watch | None = None,
    tombstones: Tombstones | None = None,
    with_report: bool = True,
) -> BuildResult:
    """Build `source` into the folder `out`, which must be new or empty; it appears only when it is complete.

    Raises UserError: what is wrong with settings, logs and the folder.
    """
    settings = _accepted(source, out)
    staging = out.parent / f".{out.name}.{os.getpid()}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        result = _build_into(staging, source, settings, watch or Watch(), tombstones or Tombstones(), with_report)
        if out.is_dir():
            out.rmdir()
        os.replace(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """Logs that have been read and redacted. What is as it was read, is in `rest` alone, without texts."""

    work: pl.DataFrame  # the working frame, without what is forgotten
    rest: pl.DataFrame  # REST of the event frame
    quarantined: pl.DataFrame
    num_events: int
    num_rows: int
    format: str
    redactions: dict[str, int]
    not_covered: str
    files: tuple[Path, ...]
    passed_over: tuple[str, ...]
    scores: tuple[ScoreRead, ...]
    wrong: frozenset[str]  # ids of events that reviews mark as wrong
    corrections: frozenset[str]  # keys of turns that a model calls corrections
    wrong_unknown: int  # of the ids reviews name, how many are no event's of these logs


def _build_into(
    folder: Path, source: Source, settings: BuildSettings, watch: Watch, given: Tombstones, with_report: bool
) -> BuildResult:
    forgotten = given
    if settings.privacy.forgotten:
        forgotten = given | read_tombstones(Path(settings.privacy.forgotten).expanduser())
    ledger = Ledger()
    opened = _open(folder, source, settings, watch, forgotten, ledger)
    watch.on_step("cleaning")
    agreed = pl.col("consent").fill_null(True)
    noisy = noise(choices_of(opened.work.filter(agreed)))
    ai_events = opened.rest.filter(pl.col("source") == AI_SOURCE)["event_id"]
    work = clean_events(opened.work, settings, ledger, opened.wrong, opened.corrections)
    work = ledger.events(without_unwanted(with_ai_marks(work, ai_events), settings.trust))
    watch.on_step("splitting")
    work = place_events(work, settings, ledger)
    watch.on_step("making rows")
    rows, used = _rows(work, settings, ledger)
    watch.on_step("writing")
    files = [written for kind in KINDS for written in write_kind(folder, kind, rows[kind])]
    ledger.dropped_events().write_ndjson(folder / "dropped.jsonl")
    result = make_result(
        Parts(
            settings=settings,
            log_format=opened.format,
            log_rows=opened.num_rows,
            inputs=input_files(source, opened.files),
            num_events=opened.num_events,
            quarantined=opened.quarantined,
            everything=opened.work.select("event_id", "kind", "thumb"),
            work=work,
            rows=rows,
            used=used,
            ledger=ledger,
            produced=tuple(files),
            redactions=opened.redactions,
            scores=opened.scores,
            forgotten=len(forgotten),
            passed_over=opened.passed_over,
            noise=noisy,
            not_covered=opened.not_covered,
            reviews_unknown=opened.wrong_unknown,
        )
    )
    (folder / "build.json").write_text(result.to_json(), encoding="utf-8")
    write_card(folder, result)
    _write_private(folder / SOURCE, source.to_json())
    _write_private(folder / TOMBSTONES, forgotten.to_json())
    if with_report:
        del work, rows
        gc.collect()
        watch.on_step("reporting")
        write_report(folder, result, public_events(opened.rest, opened.work.filter(agreed)))
    return result


def _open(
    folder: Path, source: Source, settings: BuildSettings, watch: Watch, forgotten: Tombstones, ledger: Ledger
) -> _Opened:
    """Read, forget, redact, and write what is broken: from here on nothing personal is in any frame."""
    watch.on_step("reading")
    given = set_apart(source.logs)
    wrong = marked_wrong(given.reviews)
    told = called_corrections(given.turns, settings.corrections.min_precision)
    private = settings.privacy
    redactor = redactor_of(private)
    log = read(source, settings, watch.on_rows)
    events = hide_ids(log.events, private.user_salt) if private.redact else log.events
    rest, num_events = events.select(REST), events.height
    parts = list(events.iter_slices(PART)) or [events]
    # The events as read are let go part by part: kept beside the working frame, all texts would be there twice.
    log, events = replace(log, events=events.clear()), events.clear()
    gone = forgotten.events | {hide_id(event, private.user_salt) for event in forgotten.events}
    kept = drop_forgotten(working_frame_of(parts), forgotten.users, frozenset(gone))
    watch.on_forgotten(frozenset(event_digest(event) for event in kept.dropped["event_id"]))
    work = ledger.events(kept)
    del kept
    marked = [{event, hide_id(event, private.user_salt)} for event in wrong]
    there = set(work["event_id"].filter(work["event_id"].is_in([event for names in marked for event in names])))
    watch.on_step("redacting")
    redacted = redactor.frame(work)
    rest = rest.with_columns(redactor.names_in(rest["comment"]))
    quarantined = log.quarantined.with_columns(redactor.names_in(log.quarantined[name]) for name in _SHOWN)
    hide = len(forgotten) > 0
    _write_quarantine(folder / "quarantine.jsonl", quarantined, hide=hide)
    if log.companion_quarantined.height:  # in no count: a companion is only looked things up in
        beside = log.companion_quarantined.with_columns(
            redactor.names_in(log.companion_quarantined[name]) for name in _SHOWN
        )
        _write_quarantine(folder / "quarantine-companion.jsonl", beside, hide=hide)
    return _Opened(
        work=redacted.frame,
        rest=rest,
        quarantined=quarantined,
        num_events=num_events,
        num_rows=log.rows_in,
        format=log.format,
        redactions=redacted.counts,
        not_covered=redactor.not_covered,
        files=(*log.files, *given.beside),
        passed_over=log.passed_over,
        scores=log.scores,
        wrong=frozenset(event for names in marked for event in names),
        corrections=told,
        wrong_unknown=sum(not names & there for names in marked),
    )


def read(source: Source, settings: BuildSettings, on_rows: OnRows = lambda rows: None) -> ImportResult:
    """The logs as events; files that only speak of events are left out."""
    return read_log(
        set_apart(source.logs).logs,
        format=source.format,
        mapping=source.mapping,
        companion=source.companion,
        user_salt=settings.privacy.user_salt,
        scores=parse_scores(settings.reading.scores),
        on_rows=on_rows,
    )


def _rows(work: pl.DataFrame, settings: BuildSettings, ledger: Ledger) -> tuple[dict[str, pl.DataFrame], pl.Series]:
    """Finished rows by kind, and the ids of events they name."""
    weighed = with_ai_weight(with_vote_weights(work, settings.trust.weights), settings.trust.ai_weight)
    signals = make_rows(weighed, settings)
    candidates = {kind: getattr(signals, kind) for kind in KINDS}
    del signals
    rows = {}
    for kind in KINDS:
        made = with_cut_flags(ledger.rows(kind, candidates.pop(kind)), work)
        rows[kind] = with_ids(kind, balanced(clean_rows(kind, made, settings, ledger), settings.trust))
    used = pl.concat([rows[kind]["events"].explode() for kind in KINDS]).drop_nulls().unique()
    ledger.close(work, used, unused(work))
    return rows, used


def input_files(source: Source, files: Sequence[Path]) -> tuple[InputFile, ...]:
    """The files that were read; a folder's logs one by one."""
    extra = [path for path in (source.mapping, source.companion) if path is not None]
    return tuple(InputFile(file.name, *file_hash(file)) for file in (*files, *extra))


def _write_quarantine(file: Path, quarantined: pl.DataFrame, *, hide: bool) -> None:
    """Broken rows with what they looked like, redacted; without the look once anything was to be forgotten.

    Whose a broken row is cannot be known, so none may show.
    """
    shown = quarantined.with_columns(
        pl.Series(name, [redact(text) for text in quarantined[name]], dtype=pl.String)
        for name, redact in (("reason", redact_text), ("excerpt", redact_excerpt))
    )
    if hide:
        shown = shown.with_columns(excerpt=pl.lit(""), reason=pl.col("reason").str.replace_all("`[^`]*`", "`...`"))
    shown.write_ndjson(file)


def _write_private(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)


def _accepted(source: Source, out: Path) -> BuildSettings:
    """The settings. Raises UserError with everything that is wrong with settings, files and folder."""
    problems: list[str] = []
    settings = BuildSettings()
    try:
        settings = parse_settings(source.overrides)
    except ConfigError as error:
        problems += error.problems
    extra = [path for path in (source.mapping, source.companion) if path is not None]
    problems += [f"{path}: there is no such file." for path in (*source.logs, *extra) if not path.exists()]
    if not source.logs:
        problems.append("no log given: name the files to read, as in logs/*.jsonl.")
    if out.is_dir() and any(out.iterdir()):
        problems.append(f"--out {out}: the folder is not empty; name a new one.")
    elif out.exists() and not out.is_dir():
        problems.append(f"--out {out}: that is a file; name a folder.")
    if problems:
        raise UserError(problems)
    return settings
