"""Feedback logs to training data: read, clean, split, apply the rules by signal, write, account for every event.

    logs -> events -> (consent, redaction, duplicates) -> splits -> rows by signal -> (refusals, caps) -> files
                 \\-> quarantine.jsonl       every drop, by rule -> dropped.jsonl, build.json, card, report

The same input and settings give the same bytes.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from conf.errors import ConfigError, UserError
from feedback.build_result import KINDS, BuildResult, InputFile
from feedback.card import write_card
from feedback.clean.personal_data import redact_frame, redact_text
from feedback.clean.unusable import drop_forgotten
from feedback.cleaning import clean_events, clean_rows, place_events
from feedback.importers import ImportResult, read_log
from feedback.ledger import Ledger
from feedback.overrides import parse_settings
from feedback.result import Parts, make_result
from feedback.settings import BuildSettings
from feedback.signals import make_rows, unused
from feedback.source import SOURCE, Source
from feedback.tombstones import FILE as TOMBSTONES
from feedback.tombstones import Tombstones, read_tombstones
from feedback.working import public_events, working_frame
from feedback.writing import file_hash, with_ids, write_kind

STEPS = ("reading", "redacting", "cleaning", "splitting", "making rows", "writing", "reporting")

OnStep = Callable[[str], None]
OnRows = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told how far a build is."""

    on_step: OnStep = field(default=lambda step: None)
    on_rows: OnRows = field(default=lambda rows: None)


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


def _build_into(
    folder: Path, source: Source, settings: BuildSettings, watch: Watch, given: Tombstones, with_report: bool
) -> BuildResult:
    forgotten = given
    if settings.privacy.forgotten:
        forgotten = given | read_tombstones(Path(settings.privacy.forgotten).expanduser())
    watch.on_step("reading")
    log = read(source, settings, watch.on_rows)
    inputs = _inputs(source)
    ledger = Ledger()
    work = working_frame(log.events)
    work = ledger.events(drop_forgotten(work, forgotten.users, forgotten.events))
    watch.on_step("redacting")
    redacted = redact_frame(work) if settings.privacy.redact else None
    work = redacted.frame if redacted else work
    _write_quarantine(folder, log.quarantined, hide=len(forgotten) > 0)
    events = public_events(log.events, work.filter(pl.col("consent").fill_null(True))) if with_report else None
    counts = (log.events.height, log.quarantined)
    read_as, rows_read = log.format, log.rows_in
    del log
    gc.collect()
    watch.on_step("cleaning")
    everything = work.select("event_id", "kind", "thumb")
    work = clean_events(work, settings, ledger)
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
            log_format=read_as,
            log_rows=rows_read,
            inputs=inputs,
            num_events=counts[0],
            quarantined=counts[1],
            everything=everything,
            work=work,
            rows=rows,
            used=used,
            ledger=ledger,
            produced=tuple(files),
            redactions=redacted.counts if redacted else {},
            forgotten=len(forgotten),
        )
    )
    (folder / "build.json").write_text(result.to_json(), encoding="utf-8")
    write_card(folder, result)
    _write_private(folder / SOURCE, source.to_json())
    _write_private(folder / TOMBSTONES, forgotten.to_json())
    if events is not None:
        watch.on_step("reporting")
        write_report_page(folder, result, events)
    return result


def read(source: Source, settings: BuildSettings, on_rows: OnRows = lambda rows: None) -> ImportResult:
    """The logs as events."""
    return read_log(
        source.logs,
        format=source.format,
        mapping=source.mapping,
        companion=source.companion,
        user_salt=settings.privacy.user_salt,
        on_rows=on_rows,
    )


def write_report_page(folder: Path, result: BuildResult, events: pl.DataFrame) -> Path | None:
    """SEAM: the HTML report. None where the report package is not there."""
    if find_spec("feedback.report") is None:
        return None
    from feedback.report import write_report

    return write_report(folder, result, events)


def _rows(work: pl.DataFrame, settings: BuildSettings, ledger: Ledger) -> tuple[dict[str, pl.DataFrame], pl.Series]:
    """Finished rows by kind, and the ids of events they name."""
    signals = make_rows(work, settings)
    candidates = {"sft": signals.sft, "pairs": signals.pairs, "kto": signals.kto}
    rows = {}
    for kind in KINDS:
        made = ledger.rows(kind, candidates[kind])
        rows[kind] = with_ids(kind, clean_rows(kind, made, settings, ledger))
    used = pl.concat([rows[kind]["events"].explode() for kind in KINDS]).drop_nulls().unique()
    ledger.close(work, used, unused(work))
    return rows, used


def _inputs(source: Source) -> tuple[InputFile, ...]:
    """The files that were read; a folder's logs one by one."""
    found = []
    extra = [path for path in (source.mapping, source.companion) if path is not None]
    for path in (*source.logs, *extra):
        inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        found += [InputFile(file.name, *file_hash(file)) for file in inside]
    return tuple(found)


def _write_quarantine(folder: Path, quarantined: pl.DataFrame, *, hide: bool) -> None:
    """Broken rows with what they looked like, redacted; without the look once anything was to be forgotten.

    A broken row cannot be told to be somebody's, so none may show.
    """
    texts = {text: redact_text(text) for name in ("reason", "excerpt") for text in quarantined[name].unique()}
    shown = quarantined.with_columns(
        pl.col(name).map_elements(texts.__getitem__, return_dtype=pl.String) for name in ("reason", "excerpt")
    )
    if hide:
        shown = shown.with_columns(excerpt=pl.lit(""), reason=pl.col("reason").str.replace_all("`[^`]*`", "`...`"))
    shown.write_ndjson(folder / "quarantine.jsonl")


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
