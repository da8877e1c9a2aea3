"""What a turn of the model asks for: tool calls read from its text (by vLLM's parsers: rollout/vllm_tool_parser.py)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from raylign.data.tool_prompt import CALL_CLOSE, CALL_OPEN
from raylign.rollout.environments.interfaces import ToolCall

TAGGED = "tagged"
"""The name of `TaggedCalls` in settings."""


_UNREADABLE = (ValueError, RecursionError)
"""What json.loads raises: a number of thousands of digits and deep brackets, which a model may well write, too."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """A call that cannot be read; the model is told why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A turn of the model."""

    words: str  # beside its calls
    calls: tuple[ToolCall | Malformed, ...]


class CallReader(Protocol):
    """Reads turns."""

    def read(self, text: str) -> Reply:
        """`text`: the turn with its special tokens, its end token left out. Never raises."""
        ...


class TaggedCalls:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of times; a last one may lack its end."""

    _CALL = re.compile(f"{re.escape(CALL_OPEN)}(.*?)(?:{re.escape(CALL_CLOSE)}|$)", re.DOTALL)

    def read(self, text: str) -> Reply:
        """Each call is read by itself: a malformed one does not take the others with it."""
        calls = tuple(_call(found) for found in self._CALL.findall(text))
        return Reply(self._CALL.sub("", text).strip(), calls)


def _call(text: str) -> ToolCall | Malformed:
    try:
        read = json.loads(text)
    except _UNREADABLE as error:
        return Malformed(f"the call is not valid JSON ({error})")
    if not isinstance(read, dict) or not isinstance(read.get("name"), str):
        return Malformed('the call has no "name"')
    return checked_call(read["name"], read.get("arguments", {}))


def checked_call(name: str, arguments: object) -> ToolCall | Malformed:
    """`arguments`: an object, or JSON text of one, as OpenAI's form has it."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except _UNREADABLE as error:
            return Malformed(f"the arguments of {name} are not valid JSON ({error})")
    if not isinstance(arguments, Mapping):
        return Malformed(f"the arguments of {name} are {type(arguments).__name__}, not an object")
    given: dict[str, Any] = {str(key): value for key, value in arguments.items()}
    return ToolCall(name, given)
