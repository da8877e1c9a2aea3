"""Several runs side by side: which settings differ, what came out, and the curves they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml
from markupsafe import Markup
from raylign.conf.errors import UserError
from raylign.pages.frame import render_page
from raylign.pages.numbers import aligned, percent
from raylign.pages.svg import line_charts
from raylign.records.atomic import write_atomic
from raylign.records.glossary import Goal, describe, title
from raylign.records.model_names import short_model
from raylign.records.report.facts import RunFacts, read_run
from raylign.records.report.origin import origin, when
from raylign.records.report.panels import headline_names
from raylign.records.report.shares import held_out_shares
from raylign.records.summary import RunSummary

_HERE = Path(__file__).parent
_MOST_RUNS = 8  # as many colours as the pages have
_ROLES = {"critic": "critic", "rollout": "rollout", "reward": "reward"}
"""Sections of roles that not every run starts -> the metrics that only such a run logs."""
_OWN = frozenset({"name", "run_root", "tracking", "checkpoint"})  # differ between any two runs and mean nothing


@dataclass(frozen=True, slots=True)
class Cell:
    """One run's value, and what it is worth."""

    text: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table, a cell for each run in their order."""

    name: str
    unit: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """One metric of all runs that have it."""

    title: str
    unit: str
    meaning: str
    chart: Markup


def write_comparison(folders: Sequence[Path], to: Path) -> Path:
    """Write the page `to` about runs in the order given and return its path.

    Raises UserError for fewer than two runs, more than eight, one named twice, and a folder without steps.
    """
    if not 2 <= len(folders) <= _MOST_RUNS:
        raise UserError(f"a comparison is of 2 to {_MOST_RUNS} runs, not {len(folders)}")
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise UserError("a run is named twice; name every run of a comparison once")
    runs = [read_run(folder) for folder in resolved]
    values = {
        "written": when(datetime.now(UTC)),
        "names": _names(resolved),
        "lead": lead(runs),
        "results": results(runs),
        "settings": settings(runs),
        "charts": charts(runs),
    }
    write_atomic(to, render_page(_HERE / "compare.html", values))
    return to


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names; where two are alike, with the folder above."""
    short_names = [folder.name for folder in folders]
    return [f.name if short_names.count(f.name) == 1 else f"{f.parent.name}/{f.name}" for f in folders]


def lead(runs: Sequence[RunFacts]) -> str:
    """Which run is preferred most, when intervals allow to say so."""
    scored = [
        (s.preference_vs_start, s.preference_low, s.preference_high, run.paths.path.name)
        for run in runs
        if (s := run.summary) is not None and s.preference_vs_start is not None
    ]
    if len(scored) < 2:
        return ""
    judges = {run.judge for run in runs if run.summary and run.summary.preference_vs_start is not None}
    if len(judges) > 1:
        return "The runs were judged by different rules, so their preferences do not compare."
    scored.sort(key=lambda one: one[0], reverse=True)
    best, second = scored[0], scored[1]
    if best[1] is not None and second[2] is not None and best[1] > second[2]:
        return f"{best[3]} is preferred most to its start model, beyond its interval."
    return "The intervals of the two best runs overlap: these prompts do not decide which is better."


def results(runs: Sequence[RunFacts]) -> tuple[Row, ...]:
    """Figures that at least one run has."""
    rows = [
        _texts("Method", [run.algorithm or "" for run in runs]),
        _texts("Started from", [short_model(run.start_model) for run in runs]),
        _texts("Judge", [run.judge for run in runs]),
        Row("Preferred to its start", "share", tuple(_preference(run) for run in runs)),
        *_share_rows(runs),
        _figures("Gold score, held out", "score", _of(runs, lambda summary: summary.gold_score_after)),
        _figures("Learned reward, held out", "score", _of(runs, lambda summary: summary.reward_after)),
        _figures("Held-out loss", "loss", [run.history.latest().get("eval/held_out/loss") for run in runs]),
        _figures("Fluency", "nats a token", _of(runs, lambda summary: summary.fluency_after)),
        _figures("KL to its start", "nats a sequence", _of(runs, lambda summary: summary.kl_final)),
        _texts("Steps", [f"{run.last_step:,}" for run in runs]),
        _texts("Cost", [origin(run).cost for run in runs]),
        _texts("Alerts", [", ".join(alert.kind.value for alert in run.alerts) for run in runs]),
    ]
    return tuple(row for row in rows if any(cell.text not in ("", "\u2013") for cell in row.cells))


def _of(runs: Sequence[RunFacts], figure: Callable[[RunSummary], float | None]) -> list[float | None]:
    return [figure(run.summary) if run.summary else None for run in runs]


def _texts(name: str, texts: Sequence[str]) -> Row:
    return Row(name, "", tuple(map(Cell, texts)))


def _figures(name: str, unit: str, values: Sequence[float | None]) -> Row:
    return Row(name, unit, tuple(map(Cell, aligned(values))))


def _preference(run: RunFacts) -> Cell:
    summary = run.summary
    if summary is None or summary.preference_vs_start is None:
        return Cell("")
    low, high, count = summary.preference_low, summary.preference_high, summary.preference_comparisons
    interval = f"{percent(low)} to {percent(high)}" if low is not None and high is not None else ""
    return Cell(percent(summary.preference_vs_start), f"{interval} ({count} prompts)" if interval else "")


def _share_rows(runs: Sequence[RunFacts]) -> list[Row]:
    shares = [{s.name: s for s in held_out_shares(run.summary)} if run.summary else {} for run in runs]
    names = dict.fromkeys(name for found in shares for name in found)
    return [
        Row(
            name,
            "share",
            tuple(
                Cell(percent(s.value), f"{s.interval} ({s.rows:,} rows)") if (s := found.get(name)) else Cell("")
                for found in shares
            ),
        )
        for name in names
    ]


def settings(runs: Sequence[RunFacts]) -> tuple[Row, ...]:
    """Settings that all runs have and use and that are not the same.

    Where results go and when they are saved is left out, and so are roles that one of the runs does not start.
    """
    flat = [dict(_leaves(yaml.safe_load(run.config_text) if run.config_text else {})) for run in runs]
    shared = set.intersection(*(set(one) for one in flat)) if all(flat) else set()
    idle = {section for run in runs for section, group in _ROLES.items() if not _logs(run, group)}
    keys = sorted(key for key in shared if key.partition(".")[0] not in _OWN | idle)
    rows = []
    for key in keys:
        values = [one[key] for one in flat]
        if len(set(values)) > 1:
            rows.append(_texts(key, [short_model(value) if value.startswith("/") else value for value in values]))
    return tuple(rows)


def _logs(run: RunFacts, group: str) -> bool:
    return any(name.startswith(f"{group}/") for name in run.history.names())


def _leaves(value: object, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [leaf for key, part in value.items() for leaf in _leaves(part, f"{prefix}.{key}" if prefix else key)]
    return [(prefix, "" if value is None else str(value))] if prefix else []


def charts(runs: Sequence[RunFacts]) -> tuple[Chart, ...]:
    """The headline curves that at least two runs have, one chart a metric."""
    names = dict.fromkeys(name for run in runs for name in headline_names(run.history, run.gold))
    found = []
    for name in names:
        series = [run.history.series(name) for run in runs]
        if sum(bool(points) for points in series) < 2:
            continue
        entry = describe(name)
        better = {Goal.UP: " Higher is better.", Goal.DOWN: " Lower is better."}.get(entry.goal, "") if entry else ""
        meaning = f"{entry.meaning}{better}" if entry else ""
        chart = line_charts(series, label=title(name))
        found.append(Chart(title(name), entry.unit if entry else "", meaning, chart))
    return tuple(found)
