"""Conversations as other tools store them, as our turns: OpenAI messages, LangChain's, ShareGPT's, plain text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec
from raylign.data.types import Message
from raylign.feedback.importers.outcome import RowProblem

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
_ANSWER_KEYS = ("output", "answer", "response", "text", "content", "completion", "result", "generated_text")


def turns_of(value: object, name: str) -> tuple[Message, ...]:
    """A list of messages, or text as one user turn. Raises RowProblem for what text turns cannot hold."""
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
    return tuple(_turn(message, name) for message in value)


def split_answer(turns: tuple[Message, ...], name: str) -> tuple[tuple[Message, ...], str]:
    """The turns before the last, and the last, which must be the assistant's."""
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise RowProblem(f"`{name}` does not end with an answer")
    return turns[:-1], turns[-1].content


def answer_of(outputs: object, name: str) -> str:
    """What was answered, from a run's output: choices, generations, a message, a named field, or text."""
    outputs = unpacked(outputs)
    if isinstance(outputs, str):
        return without_thoughts(outputs)
    if isinstance(outputs, list) and outputs:
        return answer_of(outputs[-1], name)
    if not isinstance(outputs, Mapping):
        raise RowProblem(f"`{name}` holds no answer")
    if isinstance(choices := outputs.get("choices"), list) and choices and isinstance(choices[0], Mapping):
        return _turn(choices[0].get("message"), name).content
    if isinstance(generations := outputs.get("generations"), list):
        return _generated(generations, name)
    if isinstance(messages := outputs.get("messages"), list) and messages:
        return turns_of(messages, name)[-1].content
    if "role" in outputs or "kwargs" in outputs:
        return _turn(outputs, name).content
    found = next((outputs[key] for key in _ANSWER_KEYS if outputs.get(key)), None)
    if found is None and len(outputs) == 1:
        found = next(iter(outputs.values()))
    if found is None:
        raise RowProblem(f"`{name}` has none of {', '.join(_ANSWER_KEYS)}; it has {names_of(outputs)}")
    return answer_of(found, name)


def unpacked(value: object) -> object:
    """JSON stored as text is read; everything else is itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return msgspec.json.decode(value.encode("utf-8"))
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return value
    return value


def _generated(generations: list[object], name: str) -> str:
    first = generations[0] if generations else None
    if isinstance(first, list):
        first = first[0] if first else None
    if not isinstance(first, Mapping):
        raise RowProblem(f"`{name}` holds no answer")
    text = first.get("text")
    return text if isinstance(text, str) and text else _turn(first.get("message"), name).content


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
    if message.get("tool_calls") or message.get("function_call") or message.get("invalid_tool_calls"):
        raise RowProblem(f"a turn of `{name}` calls a tool; only text turns are read")
    attached = next((key for key in _ATTACHED if message.get(key)), None)
    if attached is not None:
        raise RowProblem(f"a turn of `{name}` holds `{attached}`; only text is read")
    text = _text_of(content, name)
    return Message(role, without_thoughts(text) if role == "assistant" else text)


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
        if isinstance(part, Mapping) and (part.get("type") in _THOUGHTS or part.get("thought") is True):
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
