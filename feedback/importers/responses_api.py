"""OpenAI's Responses API as logged: `input` and `instructions`, `output` items (shape checked against openai 3.52).

The instructions of an earlier response are not carried over to the next (openai's ResponseCreateParams), so an earlier
exchange that `previous_response_id` names gives its turns alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raylign.data.types import FinishReason, Message
from raylign.feedback.importers.containers import Columns
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.turns import turns_of, unpacked
from raylign.feedback.importers.values import finish_of

_MOST_EXCHANGES = 1000  # a longer way back is a circle
_PASSED_OVER = ("reasoning",)
_CALL, _RESULT = "function_call", "function_call_output"

Earlier = Callable[[str], tuple[Columns, Columns]]
"""The request and response of an id. Raises RowProblem when it is not in the log."""


def is_response(response: Columns) -> bool:
    """Whether a logged response has output items."""
    return isinstance(unpacked(response.get("output")), list)


def asked(request: Columns, response: Columns, earlier: Earlier) -> tuple[Message, ...]:
    """Instructions, earlier exchanges, and what was asked. Raises RowProblem for what is not in the log."""
    instructions = request.get("instructions") or response.get("instructions")
    turns = _exchange(request)
    before = _before(request, response)
    for _ in range(_MOST_EXCHANGES):
        if before is None:
            break
        past_request, past_response = earlier(before)
        turns = (*_exchange(past_request), answered(past_response)[0], *turns)
        before = _before(past_request, past_response)
    if isinstance(instructions, list):
        return (*_items(instructions, "instructions"), *turns)
    return (Message("system", instructions), *turns) if isinstance(instructions, str) and instructions else turns


def answered(response: Columns) -> tuple[Message, FinishReason | None]:
    """The answer, and why it ended. Raises RowProblem when it is more than a message and calls of the user's tools."""
    items = unpacked(response.get("output"))
    messages: list[Mapping[str, object]] = []
    calls: list[object] = []
    for item in items if isinstance(items, list) else []:
        kind = item.get("type", "message") if isinstance(item, Mapping) else None
        if kind == "message":
            if calls:
                raise RowProblem("the response says something after a call, which a turn writes before its calls")
            messages.append(item)
        elif kind == _CALL:
            calls.append(item)
        elif kind not in _PASSED_OVER:
            raise RowProblem(f"the response holds an item of type {str(kind)[:40]!r}; only text is read")
    final = [item for item in messages if item.get("phase") in (None, "final_answer")]
    if len(final) != 1 and not (calls and not final):
        raise RowProblem(f"the response holds {len(final)} answers; expected one message in `output`")
    details = unpacked(response.get("incomplete_details"))
    reason = details.get("reason") if isinstance(details, Mapping) else response.get("status")
    text = _content(final[0]) if final else None
    turns = turns_of([{"role": "assistant", "content": text, "tool_calls": calls}], "output")
    if len(turns) != 1:
        raise RowProblem("the response's message holds what a tool said")
    return turns[0], finish_of(reason)


def _exchange(request: Columns) -> tuple[Message, ...]:
    if request.get("prompt") or request.get("conversation"):
        held = "prompt" if request.get("prompt") else "conversation"
        raise RowProblem(f"the request names a stored `{held}`, which is not in the log")
    given = unpacked(request.get("input"))
    return _items(given, "input") if isinstance(given, list) else turns_of(given, "input")


def _items(items: list[object], name: str) -> tuple[Message, ...]:
    kept: list[dict[str, object]] = []
    for item in items:
        kind = item.get("type", "message") if isinstance(item, Mapping) else None
        if kind == "message":
            assert isinstance(item, Mapping)
            kept.append({"role": item.get("role"), "content": _content(item)})
        elif kind == _CALL:
            if (
                not kept or kept[-1]["role"] != "assistant"
            ):  # else of the turn whose words or first call stand before it
                kept.append({"role": "assistant", "content": None})
            calls = kept[-1].setdefault("tool_calls", [])
            assert isinstance(calls, list)
            calls.append(item)
        elif kind == _RESULT:
            assert isinstance(item, Mapping)
            kept.append({"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")})
        elif kind not in _PASSED_OVER:
            raise RowProblem(f"`{name}` holds an item of type {str(kind)[:40]!r}; only text is read")
    return turns_of(kept, name)


def _content(item: object) -> object:
    """A refusal is what the model said as well."""
    content = item.get("content") if isinstance(item, Mapping) else None
    if not isinstance(content, list):
        return content
    return [{"text": part["refusal"]} if isinstance(part, Mapping) and "refusal" in part else part for part in content]


def _before(request: Columns, response: Columns) -> str | None:
    before = request.get("previous_response_id") or response.get("previous_response_id")
    return before if isinstance(before, str) else None
