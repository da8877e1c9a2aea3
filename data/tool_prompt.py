"""Tools in the system turn, for models whose chat template has no place for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raylign.data.types import Message

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
"""Around a call, a JSON object of name and arguments: the form of Hermes and Qwen models, which vLLM reads as well."""

_INSTRUCTIONS = """You can call tools. To call one, write
{opening}
{{"name": "<name>", "arguments": {{<arguments>}}}}
{closing}
and end your turn: the result is given to you. When you need no more tools, answer.

Tools, one a line:
{tools}"""


def with_tools(turns: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """The turns, with the tools at the end of the system turn, or in one of their own."""
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = _INSTRUCTIONS.format(opening=CALL_OPEN, closing=CALL_CLOSE, tools=listed)
    if turns and turns[0].role == "system":
        return (replace(turns[0], content=f"{turns[0].content}\n\n{text}".lstrip()), *turns[1:])
    return (Message("system", text), *turns)
