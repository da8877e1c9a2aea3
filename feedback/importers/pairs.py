"""Annotation tools let each team name its fields: which of them are the question and the answers."""

from __future__ import annotations

from collections.abc import Mapping

from raylign.data.types import Message
from raylign.feedback.importers.beside import (
    CONTEXT,
    HISTORY,
    INSTRUCTIONS,
    is_context,
    is_conversation,
    plain,
    with_history,
)
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.turns import turns_of
from raylign.feedback.turns import said

QUESTIONS = ("prompt", "instruction", "question", "input", "query", "messages", "chat", "context", "text")
ANSWERS = ("response", "answer", "completion", "output", "generation")
_SHOWN = frozenset((*HISTORY, *INSTRUCTIONS, *CONTEXT, "image", "images", "files", "attachments"))
_STEMS = (*ANSWERS, "text", "model_output", "option")
_ENDS = (("1", "2"), ("_1", "_2"), ("-1", "-2"), ("_a", "_b"), ("-a", "-b"), ("A", "B"), ("_left", "_right"))
_NAMED = (("left", "right"), ("chosen", "rejected"), ("a", "b"))


def question_in(fields: Mapping[str, object]) -> tuple[Message, ...]:
    """The prompt, by the usual names. Raises RowProblem."""
    name = next((name for name in QUESTIONS if fields.get(name)), None)
    if name is None:
        raise RowProblem(f"no question: none of {', '.join(QUESTIONS)} is there")
    answers = {*(two_answers_in(fields) or ()), answer_name_in(fields)}
    shown = {
        key: value
        for key, value in fields.items()
        if key == name or (key not in answers and (plain(key) in _SHOWN or is_context(key) or is_conversation(value)))
    }
    return with_history(shown, name, name)


def two_answers_in(fields: Mapping[str, object]) -> tuple[str, str] | None:
    """The names of the fields with the first and second answer; None when there are not two."""
    pairs = [(stem + first, stem + second) for stem in _STEMS for first, second in _ENDS]
    return next((pair for pair in (*pairs, *_NAMED) if pair[0] in fields and pair[1] in fields), None)


def answer_name_in(fields: Mapping[str, object]) -> str | None:
    """The name of the field with the only answer."""
    return next((name for name in ANSWERS if name in fields), None)


def text_in(fields: Mapping[str, object], name: str) -> str:
    """Text, or the text of a message (the last of several). Raises RowProblem."""
    value = fields.get(name)
    if isinstance(value, str):
        return value
    if isinstance(value, list | dict) and value:
        return said(turns_of(value, name)[-1])
    raise RowProblem(f"`{name}` holds no text")
