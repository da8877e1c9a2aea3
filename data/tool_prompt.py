"""An environment's tools in a prompt: by the chat template, or in the system turn where it has no place for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raylign.data.row_fields import RowError, refuse_unknown_calls
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


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """What every prompt of a run offers."""

    tools: Sequence[Mapping[str, Any]]
    in_template: bool  # the chat template writes them

    def turns(self, turns: tuple[Message, ...]) -> tuple[Message, ...]:
        """A prompt's turns, with the tools where the template has no place for them. Raises RowError for a call of
        another tool."""
        if not self.tools:
            return turns
        refuse_unknown_calls(json.dumps({"tools": list(self.tools)}), (turn.extra for turn in turns))
        return turns if self.in_template else with_tools(turns, self.tools)

    def variables(self, given: str) -> str:
        """What the template is given beside the turns; `given`: a row's own, as JSON. Raises RowError for a row that
        brings tools of its own, which the environment does not have."""
        row = json.loads(given) if given else {}
        if self.tools and "tools" in row:
            raise RowError("`tools` of the row are not the environment's, which the prompt offers; leave them out")
        if not (self.tools and self.in_template):
            return given
        return json.dumps(row | {"tools": list(self.tools)}, ensure_ascii=False)
