"""Chatbot-arena battles: the 100k and 140k sets (two conversations a row) and the 55k table (CSV, JSON in its cells).

A vote is about whole conversations. It becomes an event only where both have the same turns up to the last answer,
because a pair needs one prompt; where the histories part before that, the row is quarantined.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from raylign.data.types import Message
from raylign.feedback.events import Choice, Event, EventKind
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Context, Format, each_whole
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.turns import split_answer, turns_of, unpacked
from raylign.feedback.importers.values import TIE, content_id, locale_of, time_of

_WINNERS = {
    "model_a": Choice.A,
    "model_b": Choice.B,
    "tie": Choice.BOTH_GOOD,  # on the site the other button says "both are bad"
    "tie (bothbad)": Choice.BOTH_BAD,
    "both_bad": Choice.BOTH_BAD,
}
_ONE_HOT = {"winner_model_a": Choice.A, "winner_model_b": Choice.B, "winner_tie": Choice.SKIPPED}


class _Battle(msgspec.Struct):
    """The fields of a battle that are read."""

    model_a: str
    model_b: str
    winner: str
    conversation_a: object
    conversation_b: object
    question_id: str | int | None = None
    id: str | int | None = None
    evaluation_session_id: str | None = None
    judge_hash: str | None = None
    judge: str | None = None
    tstamp: object = None
    timestamp: object = None
    language: str | None = None
    is_code: bool | None = None
    category_tag: dict[str, object] | None = None


def _is_battle(columns: Columns) -> bool:
    return {"model_a", "model_b", "winner", "conversation_a", "conversation_b"} <= set(columns)


def _is_mt_bench(columns: Columns) -> bool:
    """A battle with the turn that was judged; the arena's own sets count turns as well, and have a time."""
    return _is_battle(columns) and {"turn", "judge"} <= set(columns) and not {"tstamp", "timestamp"} & set(columns)


def _is_table(columns: Columns) -> bool:
    return {"prompt", "response_a", "response_b", *_ONE_HOT} <= set(columns)


def _battle(row: Row, columns: Columns, context: Context) -> list[Event]:
    battle = msgspec.convert(columns, _Battle)
    if battle.winner not in _WINNERS:
        raise RowProblem(f"unknown choice `{battle.winner[:40]}`; expected one of {', '.join(_WINNERS)}")
    conversation_a = turns_of(unpacked(battle.conversation_a), "conversation_a")
    conversation_b = turns_of(unpacked(battle.conversation_b), "conversation_b")
    prompt, response_a, response_b = _one_prompt(conversation_a, conversation_b)
    key = battle.question_id if battle.question_id is not None else battle.id
    texts = (prompt[-1].content, response_a, response_b, battle.model_a, battle.model_b)
    time = time_of(battle.tstamp, "tstamp") or time_of(battle.timestamp, "timestamp")
    return [
        Event(
            event_id=content_id("arena", *texts) if key is None else f"arena:{key}",
            kind=EventKind.SIDE_BY_SIDE,
            source=context.source,
            source_row=row.line,
            prompt=prompt,
            response_a=response_a,
            response_b=response_b,
            conversation_id=battle.evaluation_session_id,
            turn=sum(turn.role == "assistant" for turn in prompt),
            user_hash=context.hashed(battle.judge_hash or battle.judge),
            time=time,
            model_a=battle.model_a,
            model_b=battle.model_b,
            choice=_WINNERS[battle.winner],
            locale=locale_of(battle.language),
            topic=_topic(battle),
        )
    ]


class _Judged(_Battle):
    """MT-bench: two turns, and which of them the judge compared."""

    turn: int = 0


def _mt_bench(row: Row, columns: Columns, context: Context) -> list[Event]:
    """Turn 1 is about the first answers; turn 2 needs equal histories like every battle."""
    judge = columns.get("judge")
    if not isinstance(judge, str) or not judge.startswith(("expert", "author")):
        raise RowProblem("judged by a model, not by a person")
    judged = msgspec.convert(columns, _Judged, strict=False)
    conversations = [turns_of(unpacked(c), "conversation") for c in (judged.conversation_a, judged.conversation_b)]
    if judged.winner not in ("model_a", "model_b", "tie"):
        raise RowProblem(f"unknown choice `{judged.winner[:40]}`; expected model_a, model_b or tie")
    if not 1 <= judged.turn <= min(map(len, conversations)) // 2:
        raise RowProblem(f"`turn` is {judged.turn}, and the conversations have {len(conversations[0]) // 2}")
    prompt, response_a, response_b = _one_prompt(*(c[: 2 * judged.turn] for c in conversations))
    tie = judged.winner == "tie"
    return [
        Event(
            event_id=f"mt_bench:{judged.question_id}:{judged.model_a}:{judged.model_b}:{judged.judge}:{judged.turn}",
            kind=EventKind.SIDE_BY_SIDE,
            source=context.source,
            source_row=row.line,
            prompt=prompt,
            response_a=response_a,
            response_b=response_b,
            turn=judged.turn - 1,
            annotator_hash=context.hashed(judged.judge),
            model_a=judged.model_a,
            model_b=judged.model_b,
            choice=Choice.SKIPPED if tie else _WINNERS[judged.winner],
            reasons=TIE if tie else (),
        )
    ]


def _one_prompt(a: tuple[Message, ...], b: tuple[Message, ...]) -> tuple[tuple[Message, ...], str, str]:
    prompt, response_a = split_answer(a, "conversation_a")
    other, response_b = split_answer(b, "conversation_b")
    if prompt != other:
        raise RowProblem("the two conversations part before the last answer; a pair needs one prompt")
    return prompt, response_a, response_b


def _topic(battle: _Battle) -> str | None:
    """Code or maths, where the set says so."""
    if battle.is_code:
        return "code"
    maths = [tags.get("math") for tags in (battle.category_tag or {}).values() if isinstance(tags, Mapping)]
    return "math" if True in maths else None


def _table(row: Row, columns: Columns, context: Context) -> list[Event]:
    """One row of the 55k table: lists of user turns and of each model's answers; the winner one-hot."""
    ones = [choice for name, choice in _ONE_HOT.items() if f"{columns.get(name)}" in ("1", "1.0", "True")]
    if len(ones) != 1:
        raise RowProblem(f"unknown choice: {len(ones)} of {', '.join(_ONE_HOT)} are 1; expected exactly one")
    questions, answers_a, answers_b = (_texts(columns, name) for name in ("prompt", "response_a", "response_b"))
    if not len(questions) == len(answers_a) == len(answers_b):
        raise RowProblem(f"{len(questions)} questions, {len(answers_a)} and {len(answers_b)} answers")
    a, b = (
        tuple(
            turn
            for q, r in zip(questions, answers, strict=True)
            for turn in (Message("user", q), Message("assistant", r))
        )
        for answers in (answers_a, answers_b)
    )
    prompt, response_a, response_b = _one_prompt(a, b)
    model_a, model_b = columns.get("model_a"), columns.get("model_b")
    key = columns.get("id")
    return [
        Event(
            event_id=content_id("arena_table", *questions, *answers_a, *answers_b)
            if key in (None, "")
            else f"arena:{key}",
            kind=EventKind.SIDE_BY_SIDE,
            source=context.source,
            source_row=row.line,
            prompt=prompt,
            response_a=response_a,
            response_b=response_b,
            turn=len(questions) - 1,
            model_a=model_a if isinstance(model_a, str) else None,
            model_b=model_b if isinstance(model_b, str) else None,
            choice=ones[0],
            reasons=TIE if ones[0] is Choice.SKIPPED else (),  # the table joins ties with "both are bad"
        )
    ]


def _texts(columns: Columns, name: str) -> list[str]:
    """A list of texts, as JSON in a cell."""
    value = unpacked(columns.get(name))
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise RowProblem(f"`{name}` is not a JSON list of texts")
    return value


MT_BENCH = Format(
    name="mt_bench",
    title="MT-bench human judgements",
    recognises=_is_mt_bench,
    parse=each_whole(_mt_bench),
)
BATTLES = Format(
    name="arena",
    title="arena battles (two conversations and a winner)",
    recognises=_is_battle,
    parse=each_whole(_battle),
    ids_from_content=True,
)
TABLE = Format(
    name="arena_table",
    title="arena battles as a table (winner_model_a, winner_model_b, winner_tie)",
    recognises=_is_table,
    parse=each_whole(_table),
    ids_from_content=True,
)
