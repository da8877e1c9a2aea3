"""What a row means, by TRL's column names: standard (strings) or conversational (lists of role and content).

`prompt` | `text` | `prompt`/`completion` | `messages` | `prompt`/`chosen`/`rejected` (or `chosen`/`rejected` as whole
conversations) | `prompt`/`completion`/`label`, with the optional columns `id`, `ground_truth`, `data_source`, `margin`,
`weight`, and `weight` of a message. What the chat template may use is passed to it or refused by name
(row_fields.py); other columns are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from raylign.data.row_fields import (
    RowError,
    refuse_answer_fields,
    refuse_unknown_calls,
    template_variables,
    turn_fields,
)
from raylign.data.types import Message

ROLES = ("system", "user", "assistant", "tool", "developer")

Side = str | tuple[Message, ...]
"""A prompt or an answer: plain text, or turns."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A question to be answered."""

    given_id: str | None
    prompt: Side
    data_source: str
    ground_truth: str | None
    variables: str = ""  # what the chat template gets besides the turns (data/row_fields.py)
    teacher_prompt: Side | None = None  # the question as a teacher is asked it


@dataclass(frozen=True, slots=True)
class PairRow:
    """Two answers to one question, of which `chosen` is better by `margin` (0: unknown)."""

    prompt: Side
    chosen: Side
    rejected: Side
    margin: float
    weight: float
    chosen_finished: bool  # False: the answer was cut off, so no end token follows it
    rejected_finished: bool
    variables: str = ""  # what the chat template gets besides the turns (data/row_fields.py)


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """A prompt and the answer to learn."""

    prompt: Side
    completion: Side
    weight: float
    finished: bool  # False: the answer was cut off, so no end token follows it
    variables: str = ""  # what the chat template gets besides the turns (data/row_fields.py)


@dataclass(frozen=True, slots=True)
class ConversationRow:
    """Turns of which every assistant's is learned, times its own weight (0: read, not learned)."""

    turns: tuple[Message, ...]
    turn_weights: tuple[float, ...]  # 0 for whoever is not the assistant
    weight: float
    variables: str = ""  # what the chat template gets besides the turns (data/row_fields.py)


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """Raw text."""

    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """An answer and whether it is desirable."""

    prompt: Side
    completion: Side
    desirable: bool
    weight: float
    finished: bool
    variables: str = ""  # what the chat template gets besides the turns (data/row_fields.py)


def completion_or_conversation(columns: Mapping[str, object]) -> CompletionRow | ConversationRow:
    """A row of supervised fine-tuning. Raises RowError."""
    refuse_answer_fields(columns)
    weight = _number(columns, "weight", 1.0, above=0.0)
    if _present(columns, "messages"):
        turns = _turns(columns["messages"], "messages")
        weights = tuple(
            _turn_weight(raw) if turn.role == "assistant" else 0.0
            for turn, raw in zip(turns, _list(columns["messages"]), strict=True)
        )
        if not any(turn.role == "assistant" for turn in turns):
            raise RowError("`messages` has no assistant turn, so nothing of it would be trained")
        if not any(weights):
            raise RowError("every assistant turn of `messages` has weight 0, so nothing of it would be trained")
        return ConversationRow(turns, weights, weight, _variables(columns, turns))
    if _present(columns, "prompt") and _present(columns, "completion"):
        prompt, completion = _question_and_answer(columns)
        return CompletionRow(
            prompt,
            completion,
            weight,
            _flag(columns, "completion_finished", default=True),
            _variables(columns, prompt, completion),
        )
    hint = "; raw `text` is for algorithm=pretrain" if _present(columns, "text") else ""
    raise RowError(f"no `messages`, and no `prompt` with `completion`; the row has {_names(columns)}{hint}")


def document_row(columns: Mapping[str, object]) -> DocumentRow:
    """A row of plain next-token training. Raises RowError."""
    if not _present(columns, "text"):
        raise RowError(f"no column `text`; the row has {_names(columns)}")
    text = _side(columns, "text")
    if not isinstance(text, str):
        raise RowError("`text` is a list of turns; conversations are for algorithm=sft, in `messages`")
    return DocumentRow(text, _number(columns, "weight", 1.0, above=0.0))


def judged_row(columns: Mapping[str, object]) -> JudgedRow:
    """An unpaired preference. Raises RowError."""
    refuse_answer_fields(columns)
    for name in ("prompt", "completion", "label"):
        if not _present(columns, name):
            raise RowError(f"no column `{name}`; the row has {_names(columns)}")
    prompt, completion = _question_and_answer(columns)
    desirable = _flag(columns, "label", default=True)
    weight = _number(columns, "weight", 1.0, above=0.0)
    return JudgedRow(
        prompt,
        completion,
        desirable,
        weight,
        _flag(columns, "completion_finished", default=True),
        _variables(columns, prompt, completion),
    )


def prompt_row(columns: Mapping[str, object]) -> PromptRow:
    """The question of a row.

    An answer the row may hold (`completion`, or the last assistant turns of `messages`) is not part of it.
    Raises RowError.
    """
    if _present(columns, "prompt"):
        prompt = _side(columns, "prompt")
    elif _present(columns, "messages"):
        prompt = _without_answer(_turns(columns["messages"], "messages"))
    else:
        raise RowError(f"no column `prompt` or `messages`; the row has {_names(columns)}")
    if not isinstance(prompt, str) and prompt[-1].role == "assistant":
        raise RowError("`prompt` ends with an assistant turn, so there is nothing to answer")
    teacher = _side(columns, "teacher_prompt") if _present(columns, "teacher_prompt") else None
    if isinstance(teacher, tuple) and teacher[-1].role == "assistant":
        raise RowError("`teacher_prompt` ends with an assistant turn, so there is nothing to answer")
    return PromptRow(
        given_id=_text_or_none(columns, "id"),
        prompt=prompt,
        data_source=_text_or_none(columns, "data_source") or "default",
        ground_truth=_text_or_none(columns, "ground_truth"),
        variables=_variables(columns, prompt, teacher or ""),
        teacher_prompt=teacher,
    )


def pair_row(columns: Mapping[str, object]) -> PairRow:
    """A preference. Raises RowError, also when both answers are the same: that teaches nothing."""
    refuse_answer_fields(columns)
    for name in ("chosen", "rejected"):
        if not _present(columns, name):
            raise RowError(f"no column `{name}`; the row has {_names(columns)}")
    chosen, rejected = _side(columns, "chosen"), _side(columns, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("`chosen` and `rejected` must both be text or both be turns")
    if _present(columns, "prompt"):
        prompt = _side(columns, "prompt")
        if not isinstance(prompt, str) and isinstance(chosen, str):
            raise RowError("`prompt` is a list of turns, so `chosen` and `rejected` must be too")
        _refuse_begun_answer(prompt)
        if isinstance(prompt, str) and not isinstance(chosen, str):
            raise RowError("`chosen` and `rejected` are lists of turns, so `prompt` must be too")
    elif isinstance(chosen, str) or isinstance(rejected, str):
        raise RowError(f"no column `prompt`; the row has {_names(columns)}")
    else:
        prompt, chosen, rejected = _common_prompt(chosen, rejected)
    if chosen == rejected:
        raise RowError("`chosen` and `rejected` are the same")
    return PairRow(
        prompt,
        chosen,
        rejected,
        _number(columns, "margin", 0.0),
        _number(columns, "weight", 1.0, above=0.0),
        _flag(columns, "chosen_finished", default=True),
        _flag(columns, "rejected_finished", default=True),
        _variables(columns, prompt, chosen, rejected),
    )


def _common_prompt(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """TRL's implicit prompt: the turns both conversations begin with."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and "tool" in {end[shared].role for end in (chosen, rejected) if shared < len(end)}:
        shared -= 1  # an answer begins with the call, not with what the tool said to it
    prompt, ends = chosen[:shared], (chosen[shared:], rejected[shared:])
    if not prompt or not all(ends):
        raise RowError("`chosen` and `rejected` are not two ends of one conversation; give the shared part as `prompt`")
    return prompt, *ends


def _variables(columns: Mapping[str, object], *sides: Side) -> str:
    """What the template gets beside the turns, which call no tool that is not among it. Raises RowError."""
    variables = template_variables(columns)
    refuse_unknown_calls(variables, (turn.extra for side in sides if not isinstance(side, str) for turn in side))
    return variables


def _question_and_answer(columns: Mapping[str, object]) -> tuple[Side, Side]:
    prompt, completion = _side(columns, "prompt"), _side(columns, "completion")
    _refuse_begun_answer(prompt)
    if isinstance(prompt, str) and not isinstance(completion, str):
        raise RowError("`completion` is a list of turns, so `prompt` must be too")
    if not isinstance(prompt, str) and isinstance(completion, str):
        raise RowError("`prompt` is a list of turns, so `completion` must be too")
    return prompt, completion


def _refuse_begun_answer(prompt: Side) -> None:
    """Some tools mean the beginning of the answer by it and others an answer of its own."""
    if not isinstance(prompt, str) and prompt[-1].role == "assistant":
        raise RowError(
            "`prompt` ends with an assistant turn; make it the beginning of the answer, or give the whole conversation "
            "as `messages`"
        )


def _turn_weight(turn: object) -> float:
    assert isinstance(turn, Mapping)
    weight = _number(turn, "weight", 1.0, above=-math.inf)
    if weight < 0:
        raise RowError(f"`weight` of a turn is {weight:g}; expected 0 or more")
    return weight


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value


def _without_answer(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    end = len(turns)
    while end and turns[end - 1].role == "assistant":
        end -= 1
    if end == 0:
        raise RowError("`messages` holds no turn to answer")
    return turns[:end]


def _side(columns: Mapping[str, object], name: str) -> Side:
    value = columns[name]
    if isinstance(value, str):
        if not value.strip():
            raise RowError(f"`{name}` is empty")
        return _encodable(value, name)
    return _turns(value, name)


def _turns(value: object, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise RowError(f"`{name}` is neither text nor a list of turns")
    return tuple(_turn(turn, name) for turn in value)


def _turn(turn: object, name: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"a turn of `{name}` is not an object with `role` and `content`")
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise RowError(f"a turn of `{name}` has role {role!r}; expected one of {', '.join(ROLES)}")
    extra = turn_fields(turn)
    if content is None and extra and role == "assistant":
        content = ""  # a turn that only calls tools
    if isinstance(content, list):
        raise RowError(f"`content` of a {role} turn of `{name}` is a list of parts (images?); only text is supported")
    if not isinstance(content, str):
        raise RowError(f"a {role} turn of `{name}` has no text in `content`")
    if not content.strip() and role != "system" and not extra:
        raise RowError(f"a {role} turn of `{name}` is empty")
    return Message(str(role), _encodable(content, name), extra)


def _encodable(text: str, name: str) -> str:
    """JSON can hold half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"`{name}` is not valid Unicode ({error.reason})") from error
    return text


def _number(columns: Mapping[str, object], name: str, default: float, above: float = -math.inf) -> float:
    value = columns.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= above:
        raise RowError(f"`{name}` is {value!r}; expected a finite number{'' if above == -math.inf else ' above 0'}")
    return float(value)


def _flag(columns: Mapping[str, object], name: str, *, default: bool) -> bool:
    value = columns.get(name)
    if value is None or isinstance(value, bool):
        return default if value is None else value
    raise RowError(f"`{name}` is {value!r}; expected true or false")


def _text_or_none(columns: Mapping[str, object], name: str) -> str | None:
    value = columns.get(name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value}"
    raise RowError(f"`{name}` is {type(value).__name__}; expected text or a number")


def _present(columns: Mapping[str, object], name: str) -> bool:
    return columns.get(name) is not None


def _names(columns: Mapping[str, object]) -> str:
    return ", ".join(sorted(columns)) or "no columns"
