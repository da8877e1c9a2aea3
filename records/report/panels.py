"""Which curves the report shows, under which question, and what each says in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from raylign.pages.numbers import aligned, percent, short
from raylign.pages.svg import Band, line_chart, stacked_bars
from raylign.records.glossary import describe, is_healthy, range_text, title
from raylign.records.metrics_log import MetricHistory

_JUDGED = "rewards and reference"
# The loop's phases that follow one another; the others (reward, reference, policy_update, ...) run inside these.
_PHASES = ("data", "generation", _JUDGED, "scoring", "advantages", "updates", "update", "sync")


@dataclass(frozen=True, slots=True)
class Panel:
    """One small chart with its words."""

    title: str
    name: str
    unit: str
    first: str
    last: str
    chart: Markup
    meaning: str
    usual: str  # healthy range in words, empty when there is none
    warning: str  # what to do; empty when the curve ended inside its range
    outside: int  # steps outside the range
    missing: int  # steps whose value was not finite


@dataclass(frozen=True, slots=True)
class Part:
    """One phase of the stacked time chart."""

    name: str
    seconds: str
    share: str


@dataclass(frozen=True, slots=True)
class TimePanel:
    """Where a step's time goes."""

    chart: Markup
    parts: tuple[Part, ...]
    step_seconds: str


@dataclass(frozen=True, slots=True)
class Question:
    """A heading and the curves that answer it."""

    heading: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class MetricLine:
    """One line of the table of all metrics."""

    name: str
    title: str
    unit: str
    first: str
    last: str
    meaning: str


def _questions(gold: str | None) -> tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]:
    """Heading -> panels; a panel is the first of its names that the run logged."""
    gold_names = (*((f"reward/{gold}", f"eval/held_out/{gold}") if gold else ()), "eval/held_out/gold_score")
    return (
        (
            "Is it getting better?",
            (
                ("reward/mean",),
                gold_names,
                ("train/loss",),
                ("train/accuracy", "train/rewards/accuracies", "train/mean_token_accuracy"),
                ("train/margin", "train/rewards/margins"),
                ("eval/held_out/loss",),
                ("eval/held_out/accuracy",),
            ),
        ),
        (
            "Does it stay itself?",
            (
                ("policy/kl",),
                ("policy/entropy", "train/entropy"),
                ("rollout/response_length",),
                ("rollout/truncated_ratio",),
                ("rollout/repetition",),
                ("eval/held_out/fluency",),
            ),
        ),
        (
            "Is the learning sound?",
            (
                ("policy/clip_fraction",),
                ("policy/grad_norm", "train/grad_norm"),
                ("critic/explained_variance",),
                ("critic/loss",),
                ("policy/approx_kl",),
                ("train/learning_rate",),
            ),
        ),
        (
            "Do the parts agree?",
            (("rollout/logprob_gap",), ("rollout/logprob_gap_max",), ("sync/canary_gap",), ("reward/failed",)),
        ),
    )


_MOST_BESIDES = 8


def headline_names(history: MetricHistory, gold: str | None) -> tuple[str, ...]:
    """The metrics that the page draws for this run, in its order."""
    logged = set(history.names())
    chosen = (next((n for n in choice if n in logged), None) for _, wanted in _questions(gold) for choice in wanted)
    return tuple(name for name in chosen if name is not None)


def questions(history: MetricHistory, gold: str | None) -> tuple[Question, ...]:
    """The curves a run has, grouped; `gold` is the reward component that is the true score."""
    logged = set(history.names())
    result = []
    for heading, wanted in _questions(gold):
        names = [next((n for n in choice if n in logged), None) for choice in wanted]
        panels = [_panel(history, name, gold) for name in names if name is not None]
        if panels:
            result.append(Question(heading, tuple(panels)))
    if besides := _measured_besides(logged, gold):
        panels = [_panel(history, name, gold) for name in besides]
        result.append(Question("What else was measured on held-out prompts?", tuple(panels)))
    return tuple(result)


def _measured_besides(logged: Collection[str], gold: str | None) -> list[str]:
    """Of an online run: its own metrics and the parts of the reward on held-out answers."""
    if "eval/held_out/reward" not in logged:
        return []
    found = sorted(name for name in logged if name.startswith("eval/held_out/"))
    entries = {name: describe(name) for name in found}
    named = [name for name, entry in entries.items() if entry is not None and "<metric>" in entry.pattern]
    return [name for name in named if name.rsplit("/", 1)[-1] != gold][:_MOST_BESIDES]


def _panel(history: MetricHistory, name: str, gold: str | None) -> Panel:
    series = history.series(name)
    finite = [value for _, value in series if value is not None]
    entry = describe(name)
    heading = title(name)
    if gold is not None and name.rsplit("/", 1)[-1] == gold:
        entry = describe("eval/held_out/gold_score")
        heading = "Gold score" if name.startswith("reward/") else "Gold score, held out"
    elif name.startswith("eval/"):
        heading = title(name) if entry is None or "<metric>" in entry.pattern else f"{entry.title}, held out"
    first, last = aligned((finite[0], finite[-1]) if finite else (None, None))
    bounded = entry is not None and (entry.low is not None or entry.high is not None)
    outside = [v for v in finite if entry is not None and not is_healthy(entry, v)]
    ended_outside = entry is not None and bool(finite) and not is_healthy(entry, finite[-1])
    return Panel(
        title=heading,
        name=name,
        unit=entry.unit if entry and entry.unit.lower() != heading.lower() else "",
        first=first,
        last=last,
        chart=line_chart(series, label=heading, band=Band(entry.low, entry.high) if entry and bounded else None),
        meaning=entry.meaning if entry else "",
        usual=range_text(entry) if entry else "",
        warning=entry.action if entry and ended_outside else "",
        outside=len(outside),
        missing=len(series) - len(finite),
    )


def time_panel(history: MetricHistory) -> TimePanel | None:
    """Seconds a step by phase, what is between the phases as "other"; None when the run logged no times."""
    rows = [row for row in history.rows if row.values.get("time/step") is not None]
    phases = [p for p in _PHASES if any(_seconds(row.values, p) for row in rows)]
    if not rows or not phases:
        return None
    table = []
    for row in rows:
        seconds = [_seconds(row.values, phase) for phase in phases]
        table.append([*seconds, max(0.0, (row.values["time/step"] or 0.0) - sum(seconds))])
    names = [*(phase.replace("_", " ") for phase in phases), "other"]
    means = [sum(column) / len(column) for column in zip(*table, strict=True)]
    whole = sum(means) or 1.0
    parts = tuple(Part(n, short(m), percent(m / whole)) for n, m in zip(names, means, strict=True))
    chart = stacked_bars([row.step for row in rows], names, table, label="Time of a step by phase", unit="s")
    return TimePanel(chart, parts, short(whole))


def _seconds(values: Mapping[str, float | None], phase: str) -> float:
    """Of the step's own time: an online step waits for answers, of which some were generated before it began, and then
    for the last of their rewards and reference log-probs.
    """
    waited, generated = values.get("time/rollout_wait"), values.get("time/generation") or 0.0
    if phase == _JUDGED:
        return max(0.0, (waited or 0.0) - generated)
    if phase == "generation" and waited is not None:
        return min(generated, waited)
    return values.get(f"time/{phase}") or 0.0


def all_metrics(history: MetricHistory) -> Sequence[MetricLine]:
    """Every metric with its first and last value."""
    lines = []
    for name in history.names():
        finite = [value for _, value in history.series(name) if value is not None]
        entry = describe(name)
        first, last = (finite[0], finite[-1]) if finite else (None, None)
        unit, meaning = (entry.unit, entry.meaning) if entry else ("", "")
        lines.append(MetricLine(name, title(name), unit, short(first), short(last), meaning))
    return lines
