"""Fields of a row that only a chat template can use: kept as JSON, refused by name when they cannot be passed on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

UNSUPPORTED: dict[str, str] = {
    **dict.fromkeys(
        ("image", "images", "image_url", "image_urls", "video", "videos", "audio", "audios"), "only text is supported"
    ),
    "functions": "use `tools`",
    **dict.fromkeys(("system", "system_prompt"), "make it a turn of role system"),
    "history": "make `prompt` a list of all turns",
}
"""Columns that hold a part of the conversation which cannot be passed on, and what to do."""

OF_AN_ANSWER = ("reasoning_content", "thinking", "tool_calls", "function_call")
"""Fields of an assistant turn; as columns of a row with answers they would be lost."""


class RowError(ValueError):
    """This row cannot be used; the message says why."""


class EarlierTurnDiffers(RowError):
    """An earlier answer has another form in the whole conversation than when it was sampled: it has to stand alone."""


def template_variables(columns: Mapping[str, object]) -> str:
    """`tools`, `documents` and `chat_template_kwargs` as one JSON object, "" for none. Raises RowError."""
    found: dict[str, object] = {}
    for name, remedy in UNSUPPORTED.items():
        if not _empty(columns.get(name)):
            raise RowError(f"column `{name}` would be lost; {remedy}")
    for name in ("tools", "documents"):
        value = _parsed(columns.get(name), name)
        if _empty(value):
            continue
        if not isinstance(value, list):
            raise RowError(f"`{name}` is not a list")
        found[name] = value
    kwargs = _parsed(columns.get("chat_template_kwargs"), "chat_template_kwargs")
    if not _empty(kwargs):
        if not isinstance(kwargs, Mapping):
            raise RowError("`chat_template_kwargs` is not an object of names and values")
        found |= {name: value for name, value in kwargs.items() if value is not None}
    if "tools" in found:
        _names_of(found["tools"])
    reserved = {"messages", "conversation", "add_generation_prompt", "tokenize", "chat_template"} & set(found)
    if reserved:
        raise RowError(f"`chat_template_kwargs` must not set `{min(reserved)}`")
    return _json(found)


def refuse_answer_fields(columns: Mapping[str, object]) -> None:
    """Raises RowError for a column that belongs into the assistant's turn."""
    for name in OF_AN_ANSWER:
        if not _empty(columns.get(name)):
            raise RowError(f"column `{name}` would be lost; make it a field of the assistant turn that it belongs to")


def turn_fields(turn: Mapping[str, object]) -> str:
    """All of a turn but role, content and weight as a JSON object, "" for none. Raises RowError."""
    _check_calls(turn)
    return _json({k: v for k, v in turn.items() if k not in ("role", "content", "weight") and not _empty(v)})


def calls_of(turn: Mapping[str, object]) -> list[dict[str, object]]:
    """The name and arguments of every tool call of a turn, in either form that logs have; the very objects in it."""
    listed = turn.get("tool_calls")
    whole = [*(listed if isinstance(listed, list) else ()), turn.get("function_call")]
    found = [c.get("function") if isinstance(c, dict) and isinstance(c.get("function"), dict) else c for c in whole]
    return [call for call in found if isinstance(call, dict) and call.get("arguments") is not None]


def refuse_unknown_calls(variables: str, turns: Iterable[str]) -> None:
    """`variables`: of `template_variables`; `turns`: of `turn_fields`. Raises RowError for a call of a tool that
    `tools` does not offer; without `tools` nothing is known of them."""
    if "tools" not in (given := json.loads(variables) if variables else {}):
        return
    offered = _names_of(given["tools"])
    for turn in filter(None, turns):
        for call in calls_of(json.loads(turn)):
            if call["name"] not in offered:
                raise RowError(
                    f"`tool_calls`: {call['name']} is not one of `tools` ({', '.join(offered)}); add it, or leave the "
                    "call out"
                )


def _names_of(tools: object) -> list[str]:
    """The name of each tool, in OpenAI's form or as a bare function. Raises RowError."""
    if not isinstance(tools, list):
        raise RowError("`tools` is not a list")
    names = []
    for number, tool in enumerate(tools, start=1):
        inner = tool.get("function") if isinstance(tool, Mapping) else None
        function = inner if isinstance(inner, Mapping) else tool
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str) or not name.strip():
            raise RowError(f"`tools`: tool {number} has no name; expected a function with `name` and `parameters`")
        if not isinstance(function.get("parameters") or {}, Mapping):
            raise RowError(f"`tools`: the `parameters` of {name} are not an object (a JSON schema)")
        names.append(name)
    return names


def _check_calls(turn: Mapping[str, object]) -> None:
    """Raises RowError for what is no call: templates print parts of it, or nothing."""
    listed, single = turn.get("tool_calls"), turn.get("function_call")
    if not _empty(listed) and not isinstance(listed, list):
        raise RowError("`tool_calls` is not a list")
    whole = [(f"`tool_calls`: call {i}", call) for i, call in enumerate(listed if isinstance(listed, list) else (), 1)]
    whole += [] if _empty(single) else [("`function_call`", single)]
    if whole and turn.get("role") != "assistant":
        raise RowError(f"`tool_calls` in a {turn.get('role')} turn; only the assistant calls tools")
    for where, given in whole:
        inner = given.get("function") if isinstance(given, Mapping) else None
        call = inner if isinstance(inner, Mapping) else given
        if not isinstance(call, Mapping) or not isinstance(name := call.get("name"), str) or not name.strip():
            raise RowError(f"{where} has no name; expected an object with `name` and `arguments`")
        if call.get("arguments") is None:
            raise RowError(f"{where}, of {name}, has no `arguments`; give {{}} where there are none")
        _check_arguments(call)


def _not_json(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


def _check_arguments(call: Mapping[str, object]) -> None:
    """OpenAI's form gives the arguments as JSON text."""
    arguments = call["arguments"]
    try:
        parsed = json.loads(arguments, parse_constant=_not_json) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError) as error:  # also numbers and brackets beyond what Python reads
        raise RowError(f"`tool_calls`: the arguments of {call.get('name')} are not valid JSON ({error})") from error
    if not isinstance(parsed, Mapping):
        raise RowError(f"`tool_calls`: the arguments of {call.get('name')} are {type(parsed).__name__}, not an object")
    _json({"tool_calls": parsed})  # half characters, written as escapes in the text


def _empty(value: object) -> bool:
    return value is None or (isinstance(value, str | list | Mapping) and not value)


def _parsed(value: object, name: str) -> object:
    """The value, or what the JSON text in it says: tables cannot hold objects of differing keys."""
    if not isinstance(value, str) or not value:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(f"`{name}` is text but not JSON") from error


def _json(fields: Mapping[str, object]) -> str:
    if not fields:
        return ""
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(f"{', '.join(f'`{name}`' for name in fields)} cannot be written as JSON ({error})") from error
    return text
