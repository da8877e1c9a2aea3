"""`raylign feedback inspect|build|forget`: what a person sees of the build."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import polars as pl
from raylign.app.commands.forgotten_models import forgotten_models
from raylign.conf.errors import DataError, UserError
from raylign.data.data_ledger import DataLedger
from raylign.feedback.build import STEPS, Watch, build, read
from raylign.feedback.build_result import KINDS, SPLITS, BuildResult, read_result
from raylign.feedback.clean.personal_data import redact_text
from raylign.feedback.forget import brought_in, forget
from raylign.feedback.given import set_apart
from raylign.feedback.importers import ImportResult
from raylign.feedback.judged_turns import read_judged
from raylign.feedback.overrides import parse_settings
from raylign.feedback.privacy import not_covered
from raylign.feedback.result import shown_score, signal
from raylign.feedback.reviews import marked_wrong
from raylign.feedback.source import Source
from raylign.feedback.tombstones import FILE as TOMBSTONES
from raylign.feedback.tombstones import Tombstones, read_tombstones
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

_ABOUT = (
    ("conversation_id", "conversation"), ("user_hash", "user"), ("annotator_hash", "annotator"), ("time", "time"),
    ("model_a", "model"), ("shown_left", "which side was left"), ("strength", "strength of choice"),
    ("seconds_taken", "seconds taken"), ("persona", "persona"), ("locale", "locale"), ("surface", "surface"),
    ("topic", "topic"), ("consent", "consent"),
)  # fmt: skip


STDIN = Path("-")
_FOLDED = ("reason", "first", "seen", "scale", "good", "read as", "why")


class BuildProgress:
    """Steps as a bar on a terminal, as plain lines elsewhere. A context manager: the bar is always taken down."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows = 0
        self.forgotten: frozenset[str] = frozenset()
        columns = (TextColumn("{task.description:<12}"), BarColumn(bar_width=24), TextColumn("{task.fields[rows]}"))
        self._bar = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._task = self._bar.add_task("starting", total=len(STEPS), rows="")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    @property
    def watch(self) -> Watch:
        """To be handed to a build."""
        return Watch(on_step=self._step, on_rows=self._read, on_forgotten=self._forget)

    def _step(self, step: str) -> None:
        self._bar.update(self._task, description=step, completed=STEPS.index(step))
        if not self._console.is_terminal:
            self._console.print(Text(step), highlight=False)

    def _forget(self, events: frozenset[str]) -> None:
        self.forgotten = events

    def _read(self, rows: int) -> None:
        self._rows += rows
        self._bar.update(self._task, rows=f"{self._rows:,} rows")


def run_build(source: Source, out: Path, console: Console, *, tombstones: Tombstones | None = None) -> BuildResult:
    """Build, and tell what came out. Standard input is kept beside `out`, so that it can be built again.

    `tombstones`: who and what is to be forgotten, beside what the settings say.
    """
    if STDIN in source.logs:
        kept = out.with_name(f"{out.name}.log")
        if kept.exists():
            raise UserError(f"{kept}: is there already, and standard input would be kept there; move it away.")
        kept.parent.mkdir(parents=True, exist_ok=True)
        source = from_stdin(source, kept)
        console.print(Text(f"standard input is kept as {kept}"), highlight=False, soft_wrap=True)
    with BuildProgress(console) as progress:
        result = build(source, out, watch=progress.watch, tombstones=tombstones)
    _show(result, out, console, refused=not result.events_used)
    if not result.events_used:
        raise DataError(result.warnings[0])
    return result


def run_forget(
    folder: Path,
    users: Sequence[str],
    events: Sequence[str],
    console: Console,
    *,
    logs: Sequence[Path] = (),
    companion: Path | None = None,
    run_roots: Sequence[Path] = (),
    registry: Path = Path("registry"),
) -> BuildResult:
    """Rebuild without people and events, and tell what is left, and what else the logs brought in.

    Then list the runs in `run_roots` whose models have learned from what is forgotten, now or by an earlier call.
    """
    try:
        before = read_result(folder)
    except (OSError, ValueError):  # forget itself says what is wrong with the folder
        before = None
    with BuildProgress(console) as progress:
        result = forget(folder, users=users, events=events, logs=logs, companion=companion, watch=progress.watch)
    gone = next((drop.events for drop in result.event_drops if drop.rule == "forgotten"), 0)
    _show(result, folder, console)
    console.print(Text(f"{gone:,} events are forgotten."), highlight=False)
    if before is not None and (note := brought_in(before, result)):
        console.print(Text(f"note: {note}"), highlight=False, soft_wrap=True)
    if not gone:
        console.print(Text("None of the logs' events is theirs; check the id, and privacy.user_salt."), highlight=False)
    asked = DataLedger(progress.forgotten, read_tombstones(folder / TOMBSTONES).users)
    for line in forgotten_models(asked, run_roots, registry):
        console.print(Text(line), highlight=False, soft_wrap=True)
    return result


def from_stdin(source: Source, file: Path) -> Source:
    """The source with `file` in place of standard input, which is written there for its owner only."""
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as kept:
        shutil.copyfileobj(sys.stdin.buffer, kept)
    return replace(source, logs=tuple(file if log == STDIN else log for log in source.logs))


def run_inspect(source: Source, console: Console) -> ImportResult:
    """Tell what logs hold, without building anything; returns them as read."""
    if STDIN in source.logs:
        with tempfile.TemporaryDirectory() as folder:
            return run_inspect(from_stdin(source, Path(folder) / "stdin"), console)
    settings = parse_settings(source.overrides)
    with BuildProgress(console) as progress:
        log = read(source, settings, progress.watch.on_rows)
    events, quarantined = log.events, log.quarantined
    console.print(
        Text(f"{log.format}: {log.rows_in:,} rows, {events.height:,} events, {quarantined.height:,} quarantined"),
        highlight=False,
    )
    given = set_apart(source.logs)
    if given.reviews:
        names = ", ".join(file.name for file in given.reviews)
        marked = len(marked_wrong(given.reviews))
        console.print(Text(f"reviews: {names}, {marked:,} events marked as wrong"), highlight=False, soft_wrap=True)
    for file in given.turns:
        judged = read_judged(file)
        corrects = sum(corrects for _, _, corrects in judged.turns)
        told = f"turns judged by {judged.judge}: {file.name}, {corrects:,} of {len(judged.turns):,} correct an answer"
        console.print(Text(told), highlight=False, soft_wrap=True)
    console.print(Text(f"privacy: {not_covered(settings.privacy)}"), highlight=False, soft_wrap=True)
    if log.passed_over:
        console.print(Text(f"passed over: {', '.join(log.passed_over)}"), highlight=False, soft_wrap=True)
    if events.height:
        console.print(Text(_when(events)), highlight=False)
        by_signal = events.group_by(signal().alias("signal")).len().sort("len", "signal", descending=[True, False])
        _print(console, "Signals", ("signal", "events"), [(name, f"{n:,}") for name, n in by_signal.iter_rows()])
        rows = [
            (label, f"{known / events.height:.1%}", f"{events[name].drop_nulls().n_unique():,}")
            for name, label in _ABOUT
            if (known := events.height - events[name].null_count())
        ]
        _print(console, "Known", ("what", "of events", "different"), rows)
    if log.scores:
        shown_scores = [shown_score(score) for score in log.scores]
        _print(
            console,
            "Scores",
            ("score", "values", "seen", "scale", "good", "read as", "why"),
            [(s.name, f"{s.count:,}", ", ".join(s.values), s.scale, s.good, s.read_as, s.why) for s in shown_scores],
        )
    if quarantined.height:
        reasons = quarantined.group_by("reason").agg(
            pl.len(), pl.format("{}:{}", pl.col("file").first(), pl.col("line").first())
        )
        shown = reasons.sort("len", "reason", descending=[True, False]).head(10)
        _print(
            console,
            "Quarantined",
            ("rows", "reason", "first"),
            [(f"{n:,}", redact_text(reason), where) for reason, n, where in shown.iter_rows()],
        )
    return log


def _show(result: BuildResult, out: Path, console: Console, *, refused: bool = False) -> None:
    """`refused`: the first warning is printed as what ends the command."""
    steps = [(step.name, f"-{step.lost:,}" if step.lost else "", f"{step.after:,}") for step in result.waterfall]
    _print(console, "From judgements to use", ("step", "lost", "left"), steps)
    made = {(file.kind, file.split): file.rows for file in result.produced}
    rows = [(kind, *(f"{made[kind, split]:,}" for split in SPLITS)) for kind in KINDS]
    _print(console, "Rows", ("kind", *SPLITS), rows)
    for warning in result.warnings[1:] if refused else result.warnings:
        console.print(Text(f"note: {warning}"), highlight=False, soft_wrap=True)
    console.print(Text(f"{out}/card.md"), highlight=False, soft_wrap=True)
    if (out / "report.html").is_file():
        console.print(Text(f"{out}/report.html"), highlight=False, soft_wrap=True)


def _when(events: pl.DataFrame) -> str:
    first, last = events["time"].min(), events["time"].max()
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        return "no event has a time"
    return f"from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"


def _print(console: Console, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=Text(title), title_justify="left", show_edge=False, pad_edge=False)
    for i, name in enumerate(head):
        # Words left, figures right; only words may be folded.
        figure = i > 0 and name not in _FOLDED
        table.add_column(name, justify="right" if figure else "left", no_wrap=figure, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    console.print()
