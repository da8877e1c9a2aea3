"""Tools, calls and what tools said as vendors log them (OpenAI, Anthropic, LangChain), in OpenAI's form.

A turn's calls are its other fields as data/row_fields.py checks them, arguments as JSON text. Tools that a request
offers are a turn of role TOOLS before all others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from raylign.data.row_fields import RowError, refuse_unknown_calls, template_variables, turn_fields
from raylign.data.types import Message
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.turns import TOOLS

USE, RESULT = "tool_use", "tool_result"
"""Anthropic's parts of a message's content."""


def turn_with_calls(role: str, text: str, message: Mapping[str, object], name: str) -> Message:
    """A turn with its calls, or with the call that it answers. Raises RowProblem for calls of another form."""
    beside = message.get("additional_kwargs")
    more = beside if isinstance(beside, Mapping) else {}
    if message.get("invalid_tool_calls"):
        raise RowProblem(f"a turn of `{name}` holds `invalid_tool_calls`, which no model should learn")
    listed = message.get("tool_calls") or more.get("tool_calls") or []
    single = message.get("function_call") or more.get("function_call")
    if not isinstance(listed, list):
        raise RowProblem(f"a turn of `{name}`: `tool_calls` is not a list")
    parts = message.get("content")
    used = [part for part in parts if _is(part, USE)] if isinstance(parts, list) else []
    fields: dict[str, object] = {}
    try:
        if calls := [_call(given) for given in [*listed, *([single] if single else []), *used]]:
            fields["tool_calls"] = calls
        if role == "tool":
            fields |= {key: message[key] for key in ("tool_call_id", "name") if message.get(key)}
        return Message(role, text, turn_fields({"role": role, **fields}))
    except RowError as error:
        raise RowProblem(f"a turn of `{name}`: {error}") from error


def results_in(message: Mapping[str, object]) -> list[Mapping[str, object]]:
    """What tools said in Anthropic's form, which is a part of a user's turn, as messages of their own."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return []
    return [
        {"role": "tool", "content": part.get("content") or "", "tool_call_id": part.get("tool_use_id")}
        for part in parts
        if _is(part, RESULT)
    ]


def with_tools(turns: Sequence[Message], offered: object, name: str) -> tuple[Message, ...]:
    """The turns after the tools that were offered. Raises RowProblem for tools without a name, and for calls of
    others."""
    if not offered or (turns and turns[0].role == TOOLS):
        return tuple(turns)
    try:
        given = _listed(offered)
        if given == []:
            return tuple(turns)
        tools = [_tool(tool) for tool in given] if isinstance(given, list) else given
        variables = template_variables({"tools": tools})
        refuse_unknown_calls(variables, (turn.extra for turn in turns))
    except RowError as error:
        raise RowProblem(f"`{name}`: {error}") from error
    return (Message(TOOLS, "", variables), *turns)


def _listed(offered: object) -> object:
    """A list that is stored as JSON text; everything else as it is. Raises RowError."""
    if not isinstance(offered, str) or not offered.lstrip().startswith("["):
        return offered
    try:
        return json.loads(offered)
    except (ValueError, RecursionError) as error:
        raise RowError(f"it is text but not JSON ({error})") from error


def _tool(tool: object) -> object:
    """OpenAI's form of a tool that stands alone (its Responses API) or in Anthropic's form."""
    if not isinstance(tool, Mapping) or isinstance(tool.get("function"), Mapping) or "name" not in tool:
        return tool
    if tool.get("type", "function") not in ("function", "custom", None):  # a vendor's own, as web_search_20250305
        raise RowError(f"{str(tool['name'])[:40]!r} is a tool of the vendor's own, of type {str(tool['type'])[:40]!r}")
    schema = tool.get("parameters") or tool.get("input_schema")
    function = {"name": tool["name"], "description": tool.get("description"), "parameters": schema}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _call(given: object) -> object:
    """With its arguments as JSON text; what is no call stays as it is, to be refused by name. Raises RowError."""
    if not isinstance(given, Mapping):
        return given
    inner = given.get("function")
    function = inner if isinstance(inner, Mapping) else given
    found = [function[key] for key in ("arguments", "args", "input") if key in function]
    arguments = found[0] if found else None
    try:
        text = (
            arguments if arguments is None or isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        )
    except (TypeError, ValueError, RecursionError) as error:  # a time or bytes, of a file that has types
        raise RowError(f"`tool_calls`: arguments cannot be written as JSON ({error})") from error
    call = {"type": "function", "function": {"name": function.get("name"), "arguments": text}}
    key = given.get("id") or given.get("call_id")
    return {"id": key, **call} if key else call


def _is(part: object, kind: str) -> bool:
    return isinstance(part, Mapping) and part.get("type") == kind
