"""Conversations as other tools store them, as our turns: OpenAI messages, LangChain's, ShareGPT's, plain text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
from raylign.data.types import Message
from raylign.feedback.importers.calls import RESULT, USE, results_in, turn_with_calls
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.turns import said

T = TypeVar("T")

_ROLES = {
    "system": "system", "developer": "developer", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "ai": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "tool": "tool", "function": "tool",
    "HumanMessage": "user", "AIMessage": "assistant", "AIMessageChunk": "assistant", "SystemMessage": "system",
    "ToolMessage": "tool",
}  # fmt: skip

_THOUGHTS = ("thinking", "redacted_thinking", "reasoning", "reasoning_text", "thought")
_ATTACHED = ("images", "image", "image_url", "audio", "attachments", "experimental_attachments", "files")
THOUGHTS = r"(?s)^\s*<(?:think|thinking|thought|reasoning)>.*?(?:</(?:think|thinking|thought|reasoning)>\s*|$)"
"""Reasoning at the beginning of an answer, as DeepSeek, Qwen and others write it; to its end where it is cut off."""
_PARTS = ("text", "output_text", USE, "image", *_THOUGHTS)  # of one message's content
_ANSWER_KEYS = ("output", "answer", "response", "text", "content", "completion", "result", "generated_text")


def turns_of(value: object, name: str) -> tuple[Message, ...]:
    """A list of messages, or text as one user turn. Raises RowProblem for what text and calls of tools cannot hold."""
    if isinstance(value, str):
        return (Message("user", value),)
    if isinstance(value, Mapping):
        value = value.get("messages", [value])
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RowProblem(f"`{name}` is {type(value).__name__}; expected text or a list of messages")
    if len(value) == 1 and isinstance(value[0], list):
        value = value[0]  # LangChain batches: a list of one conversation
    if not value:
        raise RowProblem(f"`{name}` has no turns")
    return tuple(turn for message in value for turn in _turns(message, name))


def split_answer(turns: tuple[Message, ...], name: str) -> tuple[tuple[Message, ...], str]:
    """The turns before the last, and the last, which must be the assistant's."""
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise RowProblem(f"`{name}` does not end with an answer")
    return turns[:-1], said(turns[-1])


def answer_of(outputs: object, name: str, asked: Sequence[Message] = ()) -> str:
    """What was answered, from a run's output: choices, generations, a message, a named field, or text.

    `asked`: the prompt, where it is known; a conversation in the output must not have gone on after it. Raises
    RowProblem where several answers stand there and which one was judged is not said.
    """
    outputs = unpacked(outputs)
    if isinstance(outputs, str):
        return without_thoughts(outputs)
    if isinstance(outputs, list) and outputs:
        return _listed_answer(outputs, name, asked)
    if not isinstance(outputs, Mapping):
        raise RowProblem(f"`{name}` holds no answer")
    if isinstance(choices := outputs.get("choices"), list) and choices and isinstance(choices[0], Mapping):
        return said(_turn(_only(choices, name).get("message"), name))
    if isinstance(generations := outputs.get("generations"), list):
        return _generated(generations, name)
    if isinstance(messages := outputs.get("messages"), list) and messages:
        return _listed_answer(messages, name, asked)
    if "role" in outputs or "kwargs" in outputs:
        return said(_turn(outputs, name))
    found = next((outputs[key] for key in _ANSWER_KEYS if outputs.get(key)), None)
    if found is None and len(outputs) == 1:
        found = next(iter(outputs.values()))
    if found is None:
        raise RowProblem(f"`{name}` has none of {', '.join(_ANSWER_KEYS)}; it has {names_of(outputs)}")
    return answer_of(found, name, asked)


def unpacked(value: object) -> object:
    """JSON stored as text is read; everything else is itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return msgspec.json.decode(value.encode("utf-8"))
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return value
    return value


def _listed_answer(entries: list[object], name: str, asked: Sequence[Message]) -> str:
    """The answer at the end of a conversation, or in parts of one message."""
    if len(entries) == 1 and isinstance(entries[0], list) and entries[0]:
        entries = entries[0]
    if all(isinstance(entry, Mapping) and "role" not in entry and entry.get("type") in _PARTS for entry in entries):
        return said(_turn({"role": "assistant", "content": entries}, name))
    if not all(isinstance(entry, Mapping) and ("content" in entry or "kwargs" in entry) for entry in entries):
        return answer_of(_only(entries, name), name, asked)
    turns = turns_of(entries, name)
    others = [place for place, turn in enumerate(turns) if turn.role != "assistant"]
    after = turns[others[-1] + 1 :] if others else turns
    last = turns[others[-1]] if others else None
    if last and asked and last.role == "user" and last.content != asked[-1].content:
        raise RowProblem(f"`{name}` goes on after the question, so which answer was judged is not known")
    if last and last.role == "tool" and last != (asked[-1] if asked else None):
        raise RowProblem(f"`{name}` holds what tools said, which is not in the question; export the model's last call")
    return said(_only(after, name))


def _only(answers: Sequence[T], name: str) -> T:
    if len(answers) != 1:
        raise RowProblem(f"`{name}` holds {len(answers)} answers, and which one was judged is not known")
    return answers[0]


def _generated(generations: list[object], name: str) -> str:
    first = _only(generations, name)
    if isinstance(first, list):
        first = _only(first, name)
    if not isinstance(first, Mapping):
        raise RowProblem(f"`{name}` holds no answer")
    text = first.get("text")
    message = first.get("message")
    return said(_turn(message, name)) if isinstance(message, Mapping) or not text else f"{text}"


def _turns(message: object, name: str) -> tuple[Message, ...]:
    """One, or those of the tools whose answers stand in it."""
    results = results_in(message) if isinstance(message, Mapping) else []
    if not results:
        return (_turn(message, name),)
    assert isinstance(message, Mapping)
    parts = [part for part in message["content"] if not (isinstance(part, Mapping) and part.get("type") == RESULT)]
    own = [_turn({**message, "content": parts}, name)] if parts else []
    return (*(_turn(result, name) for result in results), *own)


def _turn(message: object, name: str) -> Message:
    if not isinstance(message, Mapping):
        raise RowProblem(f"a turn of `{name}` is not an object with `role` and `content`")
    if isinstance(message.get("kwargs"), Mapping):  # LangChain's serialised form names the class in `id`
        kind = message.get("id")
        message = {"role": kind[-1] if isinstance(kind, list) and kind else None, **message["kwargs"]}
    raw_role = message.get("role") or message.get("from") or message.get("type")
    role = _ROLES.get(raw_role) if isinstance(raw_role, str) else None
    if role is None:
        raise RowProblem(f"a turn of `{name}` has the unknown role {str(raw_role)[:40]!r}")
    content = message.get("content", message.get("value", message.get("parts")))
    attached = next((key for key in _ATTACHED if message.get(key)), None)
    if attached is not None:
        raise RowProblem(f"a turn of `{name}` holds `{attached}`; only text is read")
    if role != "assistant":
        return turn_with_calls(role, _text_of(content, name), message, name)
    text = "" if content is None else without_thoughts(_text_of(content, name))
    turn = turn_with_calls(role, text, message, name)
    if content is None and not turn.extra:
        raise RowProblem(f"a turn of `{name}` has no text in `content`")
    return turn


def without_thoughts(answer: str) -> str:
    """An answer without the reasoning it opens with (<think>...</think>): it is not imitated as words."""
    return re.sub(THOUGHTS, "", answer)


def _text_of(content: object, name: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowProblem(f"a turn of `{name}` has no text in `content`")
    parts = []
    for part in content:
        if isinstance(part, Mapping) and (part.get("type") in (*_THOUGHTS, USE) or part.get("thought") is True):
            continue
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise RowProblem(f"a turn of `{name}` holds a part of type {str(kind)[:40]!r}; only text is read")
        parts.append(text)
    return "".join(parts)


def names_of(columns: Mapping[str, object]) -> str:
    """The first of a row's names, for a message."""
    return ", ".join(str(key)[:40] for key in list(columns)[:8]) or "no fields"
