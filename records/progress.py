"""What a person sees while a run goes on: one live line on a terminal, one plain line a step anywhere else."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from raylign.records.summary import RunSummary
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True)
class _Shown:
    """A metric on the line: the first of `names` that a step has; `{gold}` in a name is the gold rule's."""

    label: str
    names: tuple[str, ...]
    form: str


_SHOWN = (
    _Shown("reward", ("reward/mean",), "{:.3f}"),
    _Shown("loss", ("train/loss",), "{:.4f}"),
    _Shown("accuracy", ("train/accuracy", "train/rewards/accuracies", "train/mean_token_accuracy"), "{:.3f}"),
    _Shown("margin", ("train/margin", "train/rewards/margins"), "{:.3f}"),
    _Shown("gold", ("eval/held_out/gold_score", "eval/held_out/{gold}", "reward/{gold}"), "{:.3f}"),
    _Shown("kl", ("policy/kl",), "{:.3f}"),
    _Shown("entropy", ("policy/entropy",), "{:.2f}"),
    _Shown("length", ("rollout/response_length",), "{:.0f}"),
    _Shown("grad", ("policy/grad_norm", "train/grad_norm"), "{:.2f}"),
    _Shown("failed", ("reward/failed",), "{:.0f}"),
)


_SUITE_BEFORE = re.compile(r"suite_(.+)_before")  # as records/suite_changes.py names it


@dataclass(frozen=True, slots=True)
class FigureRow:
    """One line of the closing table."""

    name: str
    before: float | None
    after: float | None
    unit: str = ""


class RunProgress:
    """Shows steps and notices of one run on `console`. A context manager: the live line is always taken down.

    `total_steps` 0: not known beforehand, see `expect`. `gold`: the rule that counts as the truth, as
    `evaluation.gold` names it.
    """

    def __init__(self, console: Console, *, total_steps: int, first_step: int = 0, gold: str = "") -> None:
        self._console = console
        self._gold = gold
        self._total = total_steps
        self._done_at_start = first_step
        self._first: tuple[int, float] | None = None  # the first step seen, and when: start-up is no step
        self._live: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[line]}"))
            self._live = Progress(*columns, console=self._console, transient=True)
            self._task = self._live.add_task(
                "starting", total=self._total or None, completed=self._done_at_start, line=""
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def expect(self, total_steps: int) -> None:
        """The number of steps, once it is known."""
        self._total = total_steps
        if self._live is not None:
            self._live.update(self._task, total=total_steps)

    def phase(self, name: str) -> None:
        """What is being done now; on a terminal only, where it overwrites itself."""
        if self._live is not None:
            self._live.update(self._task, description=name)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A finished step."""
        of = f"/{self._total}" if self._total else ""
        line = f"step {step}{of}  {step_line(metrics, self._gold)}  {self._remaining(step, metrics)}".rstrip()
        if self._live is not None:
            self._live.update(self._task, completed=step, line=Text(line).plain)
        else:
            self.notice(line)

    def notice(self, text: str) -> None:
        """A sentence that stays on the screen; never read as markup."""
        self._console.print(Text(text), soft_wrap=True, highlight=False)

    def _remaining(self, step: int, metrics: Mapping[str, float]) -> str:
        """At the pace since the first step that was seen; of that one by the step's own time."""
        now = time.monotonic()
        self._first = self._first or (step, now)
        first_step, first_seen = self._first
        pace = metrics.get("time/step") if step == first_step else (now - first_seen) / (step - first_step)
        if pace is None or step >= self._total:  # also when the number of steps is not known
            return ""
        return f"{duration(pace * (self._total - step))} left"


def show_ending(console: Console, title: str, figures: Sequence[FigureRow], paths: Mapping[str, str]) -> None:
    """The closing table of figures and where things lie; for after the live line is down."""
    if figures:
        table = Table(title=Text(title), title_justify="left", show_edge=False, pad_edge=False)
        table.add_column("")
        for head in ("before", "after"):
            table.add_column(head, justify="right")
        table.add_column("unit")
        for row in figures:
            table.add_row(Text(row.name), _figure(row.before), _figure(row.after), Text(row.unit))
        console.print(table)
    width = max((len(name) for name in paths), default=0)
    for name, path in paths.items():
        console.print(Text(f"{name:<{width}}  {path}"), soft_wrap=True, highlight=False)


def figures_of(summary: RunSummary) -> list[FigureRow]:
    """A summary's figures, those it has, as rows for `show_ending`."""
    rows = (
        FigureRow("preferred to the start", None, summary.preference_vs_start, "share"),
        FigureRow("gold score", summary.gold_score_before, summary.gold_score_after, "score"),
        FigureRow("learned reward", summary.reward_before, summary.reward_after, "score"),
        FigureRow("fluency", summary.fluency_before, summary.fluency_after, "nats a token"),
        FigureRow("KL to the start", None, summary.kl_final, "nats a sequence"),
        *_extra_rows(summary.extra),
        FigureRow("steps", None, summary.steps),
        FigureRow("time", None, summary.seconds_total, "s"),
    )
    return [row for row in rows if row.before is not None or row.after is not None]


def _extra_rows(extra: Mapping[str, float]) -> Iterator[FigureRow]:
    """Suites with their figures before and after, intervals left out; everything else by its name."""
    for key, value in extra.items():
        if found := _SUITE_BEFORE.fullmatch(key):
            yield FigureRow(f"suite {found[1]}", value, extra.get(f"suite_{found[1]}_after"))
        elif not key.startswith("suite_"):
            yield FigureRow(key.replace("_", " "), None, value)


def step_line(metrics: Mapping[str, float], gold: str = "") -> str:
    """The few numbers of a step worth a glance, in a fixed order. `gold`: as of RunProgress."""
    parts = []
    for shown in _SHOWN:
        names = tuple(name.format(gold=gold) for name in shown.names)
        name = next((n for n in names if n in metrics), None)
        if name is not None:
            parts.append(f"{shown.label} {shown.form.format(metrics[name])}")
    if "time/step" in metrics:
        parts.append(f"{metrics['time/step']:.1f} s")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Time for people: `48 s`, `12 min 05 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _figure(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.4g}"
