"""One event's whole way through a run, as figures: what a page or a terminal shows. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raylign.data.types import Message


@dataclass(frozen=True, slots=True)
class RowOrigin:
    """Where a training row came from, as the build wrote it beside the row."""

    number: int  # line of the training file, from 1
    events: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    weight: float | None = None
    margin: float | None = None
    persona: str | None = None
    topic: str | None = None

    @property
    def name(self) -> str:
        """Its first event, or its place in the file."""
        return self.events[0] if self.events else f"row:{self.number}"


@dataclass(frozen=True, slots=True)
class TokenMove:
    """One token of an answer and the change of its log-prob, in nats."""

    text: str
    by_step: float  # from before to after the row's first step
    by_run: float  # from the start to the end of the run


@dataclass(frozen=True, slots=True)
class AnswerTrace:
    """One answer of a row. Values are log-probs in nats, or a reward model's scores."""

    text: str
    start: float
    end: float
    tokens: tuple[TokenMove, ...]  # empty for scores


@dataclass(frozen=True, slots=True)
class StepTrace:
    """One step that trained on the row."""

    step: int
    lr: float
    before: float  # what the row says of the model: see RowTrace.unit
    after: float
    predicted: float | None  # first-order change from before to after; None where the loss is not of the value alone
    loss: float
    gradient_norm: float
    layers: tuple[tuple[str, float], ...]  # gradient norm by layer
    movement: float  # cosine of the run's whole change with the step down this gradient


@dataclass(frozen=True, slots=True)
class Alike:
    """Another row that pulled the same or the opposite way."""

    origin: RowOrigin
    cosine: float
    question: str
    answer: str
    desirable: bool | None = None  # of a judged answer


@dataclass(frozen=True, slots=True)
class RowTrace:
    """One training row of the event."""

    origin: RowOrigin
    question: tuple[Message, ...]
    answers: tuple[AnswerTrace, ...]  # chosen and rejected, or the one answer
    desirable: bool | None  # of a judged answer
    start: float
    end: float
    steps: tuple[StepTrace, ...]
    same: tuple[Alike, ...]
    opposite: tuple[Alike, ...]


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """An answer of an online run and what the event did to its score."""

    question: str
    answer: str
    score: float
    cosine: float  # of the step down the event's gradient with the score's gradient: above 0 the event raised it


@dataclass(frozen=True, slots=True)
class EventTrace:
    """Everything about one event in one run."""

    event: str
    run: str
    algorithm: str
    value: str  # "probability gap", "score gap" or "log-probability"
    unit: str  # "nats" or "score points"
    rows: tuple[RowTrace, ...]
    dropped: tuple[str, ...]  # why the build used the event nowhere, by rule
    other_rows: int  # rows of the event in other kinds or splits of the build
    loss_gap: float  # replay against the run, largest relative difference of a step's loss
    loss_gap_step: int
    num_steps: int
    online: str = ""  # the online run that was asked about, where this is its reward model's run
    answers: tuple[ScoredAnswer, ...] = ()  # of that run, most raised first, most lowered last
    notes: tuple[str, ...] = ()


VERDICTS = {True: "liked", False: "disliked"}
"""What a person said of a judged answer."""


def headline(trace: EventTrace) -> str:
    """The one sentence: what the click did."""
    if not trace.rows:
        reason = f": {trace.dropped[0]}" if trace.dropped else ""
        return f"This event trained nothing in {trace.run}{reason}."
    row = trace.rows[0]
    if not row.steps:
        return f"{trace.run} ended before it came to this event."
    change, own = row.end - row.start, sum(step.after - step.before for step in row.steps)
    wanted = -1.0 if row.desirable is False else 1.0
    sense = "as the person wanted" if change * wanted > 0 else "against what the person wanted"
    subject = f"The {trace.value}" + (" between the two answers" if len(row.answers) == 2 else " of the answer")
    return (
        f"{subject} moved by {change:+.3g} {trace.unit} over the run, {sense}; the "
        f"step{'s' if len(row.steps) > 1 else ''} that trained on this event moved it by {own:+.3g}."
    )


def summary_lines(trace: EventTrace) -> list[str]:
    """The trace for a terminal."""
    lines = [headline(trace)]
    for row in trace.rows:
        made = f", by {', '.join(row.origin.rules)}" if row.origin.rules else ""
        lines.append(f"row {row.origin.number}{made}: {trace.value} at the start {row.start:.4g} {trace.unit}")
        for step in row.steps:
            predicted = "" if step.predicted is None else f" (first order {step.predicted:+.3g})"
            lines.append(
                f"  step {step.step}: {step.before:.4g} -> {step.after:.4g}, {step.after - step.before:+.3g}"
                f"{predicted}; loss {step.loss:.4g}, gradient {step.gradient_norm:.3g}"
            )
        lines.append(f"  end: {row.end:.4g}")
        for label, alike in (("same way", row.same), ("opposite way", row.opposite)):
            if alike:
                named = ", ".join(f"{one.origin.name} ({one.cosine:+.2f})" for one in alike)
                lines.append(f"  pulled the {label}: {named}")
    for one in trace.answers:
        lines.append(f"  score of an answer of {trace.online} {one.cosine:+.3f}: {one.question}  ->  {one.answer}")
    return lines


def origin_of(number: int, columns: Mapping[str, object]) -> RowOrigin:
    """From a row's columns; what a file made elsewhere lacks stays empty."""

    def texts(name: str) -> tuple[str, ...]:
        found = columns.get(name)
        return tuple(str(one) for one in found) if isinstance(found, Sequence) and not isinstance(found, str) else ()

    def number_of(name: str) -> float | None:
        found = columns.get(name)
        return float(found) if isinstance(found, int | float) else None

    def text(name: str) -> str | None:
        found = columns.get(name)
        return found if isinstance(found, str) and found else None

    return RowOrigin(
        number,
        texts("events"),
        texts("rules"),
        number_of("weight"),
        number_of("margin"),
        text("persona"),
        text("topic"),
    )
