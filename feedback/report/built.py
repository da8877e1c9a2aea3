"""What a build did: the waterfall, what was dropped with examples, what was produced, five pairs. From its result."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup
from raylign.feedback.build_result import KINDS, SPLITS, BuildResult, Example
from raylign.feedback.report.charts import Scale, lost_bar
from raylign.pages.numbers import percent, short

_SIGNAL_WORDS = {
    "side_by_side": "Side-by-side choices",
    "thumb_up": "Thumbs up",
    "thumb_down": "Thumbs down",
    "rating": "Ratings",
    "correction": "Corrections",
}
_STEP_WORDS = {
    "in": "came in",
    "quarantined": "could not be read",
    "tie_both_good": "ties, both good",
    "tie_both_bad": "ties, both bad",
    "duplicate_event": "repeated",
    "split_overlap": "asked in another split as well",
    "signal_off": "kinds of feedback switched off",
}
_IDLE_WORDS = {"quarantined": "rows that could not be read"}
_ROW_WORDS = {"sft": "answers to imitate", "pairs": "preference pairs", "kto": "judged answers",
              "teacher": "prompts for a teacher"}  # fmt: skip
_KIND_WORDS = {
    "sft": "Answers to imitate (SFT)",
    "pairs": "Preference pairs (reward model, DPO)",
    "kto": "Judged answers (KTO)",
    "teacher": "Prompts with what people wrote, for a teacher (distillation)",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the waterfall: what is left, and what this step took."""

    name: str
    why: str
    left: str
    lost: str
    chart: Markup
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """One rule that dropped rows after they were made, with examples to open."""

    rule: str
    why: str
    count: str
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class ProducedRow:
    """One kind of data set over its splits."""

    name: str
    splits: tuple[str, ...]  # rows by split, in the order of SPLITS
    total: str
    weight: str
    length: str


@dataclass(frozen=True, slots=True)
class SignalRow:
    """What became of one kind of feedback."""

    name: str
    read: str
    used: str
    outputs: tuple[str, ...]  # by KINDS


@dataclass(frozen=True, slots=True)
class Built:
    """Everything of the page that a build adds."""

    result: BuildResult
    steps: tuple[Step, ...]
    idle: tuple[str, ...]  # steps that took nothing
    dropped: tuple[Dropped, ...]
    produced: tuple[ProducedRow, ...]
    signals: tuple[SignalRow, ...]
    adds_up: bool


def built(result: BuildResult) -> Built:
    """The sections of one build."""
    top = max((step.before for step in result.waterfall), default=1)
    examples = {drop.rule: drop.examples for drop in result.event_drops}
    shown = [step for i, step in enumerate(result.waterfall) if step.lost or not i]
    steps = [
        Step(
            _name(step.name),
            step.why,
            f"{step.after:,}",
            f"\u2212{step.lost:,}" if step.lost else "",
            lost_bar(step.before, step.after, Scale(0.0, top), label=f"{step.after:,} of {step.before:,} left"),
            examples.get(step.name, ()),
        )
        for step in shown
    ]
    idle = tuple(_IDLE_WORDS.get(step.name, _name(step.name)) for step in result.waterfall if step not in shown)
    rows = tuple(
        Dropped(_name(d.rule), d.why, f"{d.rows:,} {_ROW_WORDS[d.kind]}", d.examples)
        for d in result.row_drops
        if d.rows
    )
    total = result.quarantined + result.events_dropped + result.events_used
    adds_up = total == result.rows_in
    return Built(result, tuple(steps), idle, rows, _produced(result), _signals(result), adds_up)


def _name(rule: str) -> str:
    return _STEP_WORDS.get(rule, rule.replace("_", " "))


def _produced(result: BuildResult) -> tuple[ProducedRow, ...]:
    rows = []
    for kind in KINDS:
        files = {p.split: p for p in result.produced if p.kind == kind}
        total = sum(p.rows for p in files.values())
        if not total:
            continue
        weight = sum(p.weight_sum for p in files.values())
        chosen = sum(p.mean_answer_chars * p.rows for p in files.values()) / total
        rejected = sum(p.mean_rejected_chars * p.rows for p in files.values()) / total
        length = f"{short(chosen)} over {short(rejected)}" if rejected else short(chosen)
        if kind == "kto":
            length += f", {percent(sum(p.desirable for p in files.values()) / total)} good"
        counts = tuple(f"{files[split].rows:,}" if split in files else "0" for split in SPLITS)
        rows.append(ProducedRow(_KIND_WORDS[kind], counts, f"{total:,}", short(weight), length))
    return tuple(rows)


def _signals(result: BuildResult) -> tuple[SignalRow, ...]:
    return tuple(
        SignalRow(
            _SIGNAL_WORDS.get(s.signal, s.signal),
            f"{s.read:,}",
            f"{s.used:,}",
            tuple(f"{n:,}" if n else "\u2013" for n in (s.in_sft, s.in_pairs, s.in_kto, s.in_teacher)),
        )
        for s in result.signals
        if s.read
    )
