"""PRISM's utterances: the answers of one turn come in rows of their own, one of them chosen by the person.

The chosen answer against each of the others that were shown with it. A conversation goes on from its chosen answers,
so a later turn's prompt is made of the interactions before it; where one is missing, the turn is quarantined.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
from raylign.data.types import Message
from raylign.feedback.events import Choice, Event, EventKind
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Context, Format, sentence
from raylign.feedback.importers.outcome import Parsed, RowProblem


class _Utterance(msgspec.Struct):
    """The fields that are read. `score` is from 1 to 100."""

    utterance_id: str
    interaction_id: str
    conversation_id: str
    user_id: str
    turn: int
    user_prompt: str
    model_response: str
    model_name: str | None = None
    if_chosen: bool | None = None
    score: float | None = None
    conversation_type: str | None = None


def recognises(columns: Columns) -> bool:
    """An utterance that was chosen or not."""
    return {"utterance_id", "interaction_id", "user_prompt", "model_response", "if_chosen"} <= set(columns)


def parse(rows: Iterable[Row], context: Context) -> Iterator[Parsed]:
    """Interaction by interaction: their rows stand together. The judgements are the last row's."""
    held: list[tuple[Row, _Utterance]] = []
    talks: dict[str, tuple[Message, ...]] = {}  # the turns so far, by conversation
    for row in rows:
        if row.columns is None:
            yield Parsed(row.line, problems=(row.problem,), excerpt=row.excerpt)
            continue
        try:
            utterance = msgspec.convert(row.columns, _Utterance, strict=False)
        except msgspec.ValidationError as problem:
            yield Parsed(row.line, problems=(sentence(problem),), excerpt=row.excerpt)
            continue
        if held and utterance.interaction_id != held[0][1].interaction_id:
            yield from _judged(held, talks, context)
            held = []
        held.append((row, utterance))
    if held:
        yield from _judged(held, talks, context)


def _judged(
    held: list[tuple[Row, _Utterance]], talks: dict[str, tuple[Message, ...]], context: Context
) -> Iterator[Parsed]:
    for row, _ in held[:-1]:
        yield Parsed(row.line)
    last = held[-1][0]
    try:
        yield Parsed(last.line, _events([utterance for _, utterance in held], last, talks, context))
    except RowProblem as problem:
        yield Parsed(last.line, problems=(f"{problem}",), excerpt=last.excerpt)


def _events(
    answers: list[_Utterance], row: Row, talks: dict[str, tuple[Message, ...]], context: Context
) -> list[Event]:
    chosen = [answer for answer in answers if answer.if_chosen]
    others = [answer for answer in answers if not answer.if_chosen]
    if len(chosen) != 1 or not others:
        raise RowProblem(
            f"{len(chosen)} of {len(answers)} answers of the interaction are chosen; expected one of several"
        )
    best = chosen[0]
    before = talks.get(best.conversation_id, ())
    if len(before) != 2 * best.turn:
        raise RowProblem(f"turn {best.turn}, and the chosen answers of the turns before it are not in the file")
    prompt = (*before, Message("user", best.user_prompt))
    talks[best.conversation_id] = (*prompt, Message("assistant", best.model_response))
    return [
        Event(
            event_id=f"prism:{best.utterance_id}:{other.utterance_id}",
            kind=EventKind.SIDE_BY_SIDE,
            source=context.source,
            source_row=row.line,
            prompt=prompt,
            response_a=best.model_response,
            response_b=other.model_response,
            conversation_id=best.conversation_id,
            turn=best.turn,
            user_hash=context.hashed(best.user_id),
            model_a=best.model_name,
            model_b=other.model_name,
            choice=Choice.A,
            topic=best.conversation_type,
        )
        for other in others
    ]


FORMAT = Format(name="prism", title="PRISM utterances", recognises=recognises, parse=parse)
