"""UltraFeedback: the raw set (four rated answers a row, four events) and the binarized one (a pair a row).

The raw set's `overall_score` is 10 on some of its worst answers, so the mean of the four aspects counts where it is
there. The raters are models; that is what the set is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import msgspec
from raylign.data.types import Message
from raylign.feedback.events import Choice, Event, EventKind
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Context, Format, Judgements, attempt, each_whole
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.score_table import As, LoggedValue, Scores
from raylign.feedback.importers.turns import split_answer, turns_of
from raylign.feedback.importers.values import TIE, content_id
from raylign.feedback.scores import Scale

_TOP_SCORE = 10.0
_ASPECTS, _OVERALL = Scale(1, 5), Scale(1, _TOP_SCORE)


class _Completion(msgspec.Struct):
    """One rated answer."""

    model: str
    response: str
    annotations: dict[str, object] | None = None
    fine_grained_score: float | str | None = msgspec.field(name="fine-grained_score", default=None)
    overall_score: float | str | None = None


class _Raw(msgspec.Struct):
    instruction: str
    completions: list[dict[str, object]]
    source: str | None = None


class _Binarized(msgspec.Struct):
    prompt: str
    chosen: list[dict[str, object]]
    rejected: list[dict[str, object]]
    prompt_id: str | None = None
    score_chosen: float | None = None
    score_rejected: float | None = None


def _is_raw(columns: Columns) -> bool:
    return {"instruction", "completions"} <= set(columns)


def _is_binarized(columns: Columns) -> bool:
    if not {"prompt", "chosen", "rejected"} <= set(columns) or not isinstance(columns["prompt"], str):
        return False  # TRL's rows have a list of turns there
    return isinstance(columns["chosen"], list) and ("prompt_id" in columns or len(columns["chosen"]) > 1)


def _raw(row: Row, columns: Columns, context: Context) -> Judgements:
    raw = msgspec.convert(columns, _Raw)
    if not raw.completions:
        raise RowProblem("no completions")
    prompt = (Message("user", raw.instruction),)
    return [attempt(_rated, row, raw, prompt, given, context) for given in raw.completions]


def _rated(row: Row, raw: _Raw, prompt: tuple[Message, ...], given: Columns, context: Context) -> Event:
    fields = {name.replace("fine_grained", "fine-grained"): value for name, value in given.items()}
    try:
        completion = msgspec.convert(fields, _Completion)
    except msgspec.ValidationError as error:
        raise RowProblem(f"a completion: {error}") from error
    return Event(
        event_id=content_id("ultrafeedback", raw.instruction, completion.model, completion.response),
        kind=EventKind.RATING,
        source=context.source,
        source_row=row.line,
        prompt=prompt,
        response_a=completion.response,
        model_a=completion.model,
        rating=_rating(completion, context.scores),
        topic=raw.source,
    )


def _rating(completion: _Completion, scores: Scores) -> float:
    """From the aspects (1 to 5) whose names say that high is good, else from the overall score (1 to 10)."""
    if completion.fine_grained_score is not None:
        return _one(scores, LoggedValue("fine-grained_score", completion.fine_grained_score, _ASPECTS, approves=True))
    given, aside = [], RowProblem("a completion without a score")
    for logged in _aspects(completion.annotations):
        try:
            given.append(_one(scores, logged))
        except RowProblem as problem:
            if logged.name in scores.by_name and scores.by_name[logged.name].numbers is not As.ASIDE:
                raise
            aside = problem
    if given:
        return sum(given) / len(given)
    if completion.overall_score is not None:
        return _one(scores, LoggedValue("overall_score", completion.overall_score, _OVERALL))
    raise aside


def _one(scores: Scores, logged: LoggedValue) -> float:
    rating = scores.judge(logged).rating
    if rating is None:
        raise RowProblem(f"`{logged.name}` is {str(logged.value)[:40]}; expected a number")
    return rating


def _aspects(annotations: Mapping[str, object] | None) -> Iterator[LoggedValue]:
    """Each aspect's rating; "N/A" is none."""
    for name, value in (annotations or {}).items():
        rating = value.get("Rating") if isinstance(value, Mapping) else None
        if rating not in (None, "N/A", ""):
            yield LoggedValue(name, rating, _ASPECTS)


def _scores(columns: Columns, context: Context) -> Iterable[LoggedValue]:
    completions = columns["completions"]
    for given in completions if isinstance(completions, list) else ():
        annotations = given.get("annotations") if isinstance(given, Mapping) else None
        yield from _aspects(annotations if isinstance(annotations, Mapping) else None)


def _binarized(row: Row, columns: Columns, context: Context) -> list[Event]:
    pair = msgspec.convert(columns, _Binarized)
    prompt, chosen = split_answer(turns_of(pair.chosen, "chosen"), "chosen")
    other, rejected = split_answer(turns_of(pair.rejected, "rejected"), "rejected")
    if prompt != other:
        raise RowProblem("`chosen` and `rejected` answer different prompts")
    scores = (pair.score_chosen, pair.score_rejected)
    ahead = None if scores[0] is None or scores[1] is None else scores[0] - scores[1]
    if ahead is not None and (ahead < 0 or not math.isfinite(ahead)):
        raise RowProblem(f"`score_chosen` {scores[0]:g} is below `score_rejected` {scores[1]:g}")
    tie = ahead == 0
    return [
        Event(
            event_id=content_id("ultrafeedback_binarized", pair.prompt_id or pair.prompt, chosen, rejected),
            kind=EventKind.SIDE_BY_SIDE,
            source=context.source,
            source_row=row.line,
            prompt=prompt,
            response_a=chosen,
            response_b=rejected,
            choice=Choice.SKIPPED if tie else Choice.A,  # with equal scores the set's choice is a coin's
            strength=min(1.0, ahead / (_TOP_SCORE - 1)) if ahead else None,
            reasons=TIE if tie else (),
        )
    ]


RAW = Format(
    name="ultrafeedback",
    title="UltraFeedback (rated completions)",
    recognises=_is_raw,
    parse=each_whole(_raw),
    ids_from_content=True,
    scores=_scores,
)
BINARIZED = Format(
    name="ultrafeedback_binarized",
    title="UltraFeedback binarized (chosen and rejected conversations)",
    recognises=_is_binarized,
    parse=each_whole(_binarized),
    ids_from_content=True,
)
