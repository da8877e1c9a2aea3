"""`raylign trace`: what one event of a feedback log did to the model that was trained on it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import torch
from raylign.app.launch.traced import (
    TracedRun,
    find_index,
    open_traced,
    other_rows,
    reads_tokens_of,
    reward_run,
    score_gradients,
    target_gradient,
)
from raylign.conf.errors import DataError, UserError
from raylign.data.end_tokens import EndTokens
from raylign.data.loading import RawRow, read_rows
from raylign.data.own_columns import OwnColumns
from raylign.data.row_fields import RowError
from raylign.data.rows import ConversationRow, completion_or_conversation, judged_row, pair_row
from raylign.data.types import FinishReason, Message, RowKind
from raylign.evals.influence import (
    Effect,
    Neighbour,
    effects,
    mean_directions,
    movement_along,
    neighbours,
    strongest,
)
from raylign.evals.replay import units_of
from raylign.evals.trace_event import (
    VERDICTS,
    Alike,
    AnswerTrace,
    EventTrace,
    RowOrigin,
    RowTrace,
    ScoredAnswer,
    StepTrace,
    TokenMove,
    origin_of,
)
from raylign.evals.trace_index import TraceIndex
from raylign.evals.trace_page import write_trace
from raylign.records.run_folder import RunPaths
from raylign.records.samples import SampleRow, read_samples
from torch import Tensor

Tell = Callable[[str], None]
_ALIKE = 5
_HELD_OUT_ROWS = 64
_SAMPLES = 32  # of an online run that are looked at
_EXCERPT = 160
_END = "\u27e8end\u27e9"  # what a page shows for an end token
_ROW = re.compile(r"row:(\d+)")


@dataclass(frozen=True, slots=True)
class Traced:
    """A run with its index and its rows as stored, by number."""

    run: TracedRun
    index: TraceIndex
    raw: dict[int, RawRow]

    def origin(self, row: int) -> RowOrigin:
        """Of a place in the training set."""
        number = self.run.rows.report.origins[row]
        return origin_of(number, self.raw[number].columns)


@dataclass(frozen=True, slots=True)
class Ranked:
    """A row in the list of the most helpful and most harmful ones."""

    origin: RowOrigin
    effect: float  # share of the largest effect, -1 to 1
    cosine: float
    question: str
    answer: str
    desirable: bool | None  # of a judged answer


def trace_event(folder: Path, event: str, tell: Tell) -> tuple[EventTrace, Path]:
    """Trace one event and write its page. Raises UserError for an event that the run's data do not name."""
    behind = reward_run(folder)
    traced = open_run(behind or folder, tell)
    places = [row for row, number in enumerate(traced.run.rows.report.origins) if _names(traced, number, event)]
    dropped, elsewhere = _in_build(traced.run, event)
    if not places and not dropped and not elsewhere:
        raise UserError(_unknown(traced, event))
    trace = _assemble(traced, event, places, dropped, elsewhere)
    if behind:
        trace = replace(trace, online=folder.name, answers=tuple(_scored(traced, folder, places)))
    return trace, write_trace(traced.run.index_folder, trace)


def rank_rows(folder: Path, held_out: str | None, count: int, tell: Tell) -> tuple[list[Ranked], list[Ranked], str]:
    """The `count` rows that helped the held-out rows most, the `count` that harmed most, and what was held out.

    Raises UserError when the run has no held-out set and no file is given.
    """
    traced = open_run(folder, tell)
    run = traced.run
    name = held_out or next(iter(run.held_out), None)
    if name is None:
        raise UserError("--for: the run has no held-out set; name a file with rows that the model should do well on.")
    rows = other_rows(run, name, tell)
    which = range(min(len(rows), _HELD_OUT_ROWS))
    ranked = effects(traced.index, target_gradient(run, traced.index, rows, which))
    largest = max((abs(one.effect) for one in ranked), default=0.0) or 1.0
    helpful, harmful = ([_ranked(traced, one, largest) for one in rows] for rows in strongest(ranked, count))
    return helpful, harmful, f"{name}, {len(which)} of {len(rows)} rows"


def ranked_lines(helpful: Sequence[Ranked], harmful: Sequence[Ranked], held_out: str) -> list[str]:
    """The list for a terminal."""
    lines = [f"effect on the loss of {held_out}; 1 is the strongest of all rows (order and sign count, not size)"]
    for label, rows in (("most helpful", helpful), ("most harmful", harmful)):
        lines.append(f"{label}:" if rows else f"{label}: none")
        for one in rows:
            said = "" if one.desirable is None else f" ({VERDICTS[one.desirable]})"
            lines.append(f"  {one.effect:+.2f}  {one.origin.name}{said}  {one.question}  ->  {one.answer}")
    return lines


def open_run(folder: Path, tell: Tell) -> Traced:
    """The run with its index, made where there is none."""
    run = open_traced(folder, tell)
    own = OwnColumns(run.config.data.columns)
    wanted = set(run.rows.report.origins)
    rows = (row for row in read_rows(run.config.data.train) if isinstance(row, RawRow))
    raw = {row.number: own.apply(row) for row in rows if row.number in wanted}
    return Traced(run, find_index(run, tell), raw)


def _names(traced: Traced, number: int, event: str) -> bool:
    found = _ROW.fullmatch(event)
    return int(found[1]) == number if found else event in origin_of(number, traced.raw[number].columns).events


def _unknown(traced: Traced, event: str) -> str:
    known = [name for row in traced.raw.values() for name in origin_of(row.number, row.columns).events]
    source = traced.run.config.data.train
    if not known:
        return f"{event}: the rows of {source} name no events (`raylign feedback build` writes them); use row:NUMBER."
    close = get_close_matches(event, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"the first is {known[0]}."
    return f"{event}: no row of {source} was made of this event; {hint}"


def _in_build(run: TracedRun, event: str) -> tuple[tuple[str, ...], int]:
    """Why the build that made the data dropped the event, by rule; and in how many of its other rows the event is."""
    train = Path(run.config.data.train)
    build = train.parent.parent
    listed = build / "dropped.jsonl"
    if not listed.is_file():
        return (), 0
    dropped = tuple(str(line["rule"]) for line in _json_lines(listed) if line.get("event_id") == event)
    others = [file for file in build.glob("*/*.jsonl") if file != train]
    used = sum(event in origin_of(0, line).events for file in others for line in _json_lines(file))
    return dropped, used


def _json_lines(file: Path) -> Iterator[dict[str, object]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                found = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{file}:{number}: not JSON ({error}).") from error
            if isinstance(found, dict):
                yield found


def _assemble(
    traced: Traced, event: str, places: Sequence[int], dropped: tuple[str, ...], elsewhere: int
) -> EventTrace:
    run, header = traced.run, traced.index.header
    start = run.values(run.start_model(), run.rows, places) if places else []
    end = run.values(run.end_model(), run.rows, places) if places else []
    rows = [_row(traced, row, a, b) for row, a, b in zip(places, start, end, strict=True)]
    pairs = run.algorithm.needs.rows is RowKind.PAIRS
    value = ("score gap" if pairs else "score") if run.scalar else ("probability gap" if pairs else "log-probability")
    return EventTrace(
        event=event,
        run=run.paths.path.name,
        algorithm=run.config.algorithm.name,
        value=value,
        unit="score points" if run.scalar else "nats",
        rows=tuple(rows),
        dropped=dropped,
        other_rows=elsewhere,
        loss_gap=header.loss_gap,
        loss_gap_step=header.loss_gap_step,
        num_steps=header.steps,
    )


def _scored(traced: Traced, online: Path, places: Sequence[int]) -> list[ScoredAnswer]:
    """Answers of the online run's newest samples, by what the event's first row did to their scores."""
    files = sorted(RunPaths(online).samples.glob("step-*.parquet"))
    rows, directions = mean_directions(traced.index)
    at = [int((rows == place).nonzero()[0, 0]) for place in places if bool((rows == place).any())]
    if not files or not at or not reads_tokens_of(traced.run, online):
        return []
    samples = read_samples(files[-1])[:_SAMPLES]
    ends = EndTokens(traced.run.tokenizer)
    own = [(*sample.prompt_ids, *_ended(sample, ends)) for sample in samples]
    found = []
    for sample, (score, sketch) in zip(samples, score_gradients(traced.run, traced.index, own), strict=True):
        cosine = -float(directions[at[0]] @ sketch) / (float(sketch.norm()) or 1.0)
        found.append(ScoredAnswer(_short(sample.prompt), _short(sample.response), score, cosine))
    found.sort(key=lambda one: -one.cosine)
    return found if len(found) <= 2 * _ALIKE else [*found[:_ALIKE], *found[-_ALIKE:]]


def _ended(sample: SampleRow, ends: EndTokens) -> tuple[int, ...]:
    """The answer as a reward model reads it: a finished one ends with an end token."""
    ids = sample.response_ids
    missing = sample.finish_reason is FinishReason.STOP and not (ids and ids[-1] in ends.ids)
    return (*ids, ends.usual_id) if missing else ids


def _row(traced: Traced, row: int, start: Tensor, end: Tensor) -> RowTrace:
    run, index = traced.run, traced.index
    draws = index.draws_of(row)
    same, opposite = neighbours(index, row, _ALIKE) if draws else ([], [])
    question, desirable = _question(run, traced.raw[run.rows.report.origins[row]])
    side = _sides(run, row)
    signs = torch.where(side == 0, 1.0, -1.0).double()
    return RowTrace(
        origin=traced.origin(row),
        question=question,
        answers=tuple(_answers(traced, row, side, start, end)),
        desirable=desirable,
        start=float(start.double() @ signs),
        end=float(end.double() @ signs),
        steps=tuple(_step(index, draw) for draw in draws),
        same=tuple(_alike(traced, one) for one in same),
        opposite=tuple(_alike(traced, one) for one in opposite),
    )


def _step(index: TraceIndex, draw: int) -> StepTrace:
    layers = zip(index.header.layers, index.layer_norm[draw].tolist(), strict=True)
    return StepTrace(
        step=int(index.step[draw]),
        lr=float(index.lr[draw]),
        before=index.value(draw),
        after=index.value(draw, after=True),
        predicted=index.predicted_change(draw),
        loss=float(index.loss[draw]),
        gradient_norm=float(index.norm[draw]),
        layers=tuple(layers),
        movement=movement_along(index, draw),
    )


def _sides(run: TracedRun, row: int) -> Tensor:
    return units_of(run.rows.batch([row]), scalar=run.scalar)[1]


def _answers(traced: Traced, row: int, side: Tensor, start: Tensor, end: Tensor) -> Iterator[AnswerTrace]:
    """Each answer's text and values; of its tokens where the model gives log-probs."""
    run, index = traced.run, traced.index
    batch = run.rows.batch([row])
    ids = batch.tokens.input_ids[units_of(batch, scalar=False)[0]]
    of_token = units_of(batch, scalar=False)[1]
    draws, ends = index.draws_of(row), EndTokens(run.tokenizer).ids
    step = (
        index.after[index.units(draws[0])] - index.before[index.units(draws[0])] if draws else torch.zeros_like(start)
    )
    for which in side.unique().tolist():
        own = ids[of_token == which].tolist()
        text = run.tokenizer.decode(own, skip_special_tokens=True)
        at = side == which
        moves = (step[at].tolist(), (end - start)[at].tolist())
        tokens = (
            ()
            if run.scalar
            else tuple(
                TokenMove(_END if token in ends else run.tokenizer.decode([token]), by_step, by_run)
                for token, by_step, by_run in zip(own, *moves, strict=True)
            )
        )
        yield AnswerTrace(text, float(start[at].sum()), float(end[at].sum()), tokens)


def _question(run: TracedRun, row: RawRow) -> tuple[tuple[Message, ...], bool | None]:
    """The turns before the answer, and the verdict on it where that is what the row says."""
    try:
        match run.algorithm.needs.rows:
            case RowKind.PAIRS:
                return _turns(pair_row(row.columns).prompt), None
            case RowKind.JUDGED:
                judged = judged_row(row.columns)
                return _turns(judged.prompt), judged.desirable
            case RowKind.CONVERSATIONS:
                parsed = completion_or_conversation(row.columns)
                return _turns(parsed.turns[:-1] if isinstance(parsed, ConversationRow) else parsed.prompt), None
    except RowError:
        pass  # a row that another version of the reader took
    return (), None


def _turns(prompt: str | Sequence[Message]) -> tuple[Message, ...]:
    return (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)


def _alike(traced: Traced, one: Neighbour) -> Alike:
    return Alike(traced.origin(one.row), one.cosine, *_excerpts(traced, one.row))


def _ranked(traced: Traced, one: Effect, largest: float) -> Ranked:
    return Ranked(traced.origin(one.row), one.effect / largest, one.cosine, *_excerpts(traced, one.row))


def _excerpts(traced: Traced, row: int) -> tuple[str, str, bool | None]:
    """The question's end, the answer (the preferred one of two), and what was said of it where that is the row."""
    run = traced.run
    turns, desirable = _question(run, traced.raw[run.rows.report.origins[row]])
    batch = run.rows.batch([row])
    at, side = units_of(batch, scalar=False)
    answer = run.tokenizer.decode(batch.tokens.input_ids[at[side == 0]].tolist(), skip_special_tokens=True)
    return _short(turns[-1].content if turns else ""), _short(answer), desirable


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 1] + "\u2026"
