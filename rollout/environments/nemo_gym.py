"""Environments behind a NeMo Gym resources server: its tools are POST routes, and it says the reward at the end.

    POST /seed_session {row}              the session is a cookie's
    POST /TOOL {arguments}                the text of the answer is what the model reads, errors with 4xx included
    POST /verify {row, "responses_create_params": {...}, "response": {an OpenAI response}} -> {"reward": float, ...}

A server that could not judge says so ("mask_sample", "_ng_failure_class"), and its episode fails by name.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
from raylign.reward.http_json import Endpoint, EndpointError, get_json, open_session, post_json, post_text
from raylign.rollout.environments.interfaces import (
    Environment,
    EnvironmentFailure,
    EnvironmentRefused,
    Outcome,
    ToolCall,
    told_error,
)
from raylign.rollout.environments.served_values import Form, Tools, number, schema_of

_SEED, _VERIFY = "/seed_session", "/verify"
_NO_TOOLS = frozenset({_SEED, _VERIFY, "/close_session", "/aggregate_metrics", "/mcp"})
_NOT_THE_CALLS = frozenset({401, 403, 408, 425, 429})
"""Refusals of a token, and of a server that is late or has too much to do: the model cannot do better next time."""
_MODEL = "policy"


class NemoGymEnvironments:
    """An Environments over a server."""

    def __init__(self, endpoint: Endpoint, form: Form, *, timeout_s: float) -> None:
        """`timeout_s`: of one call."""
        self._endpoint, self._tools, self._timeout_s = endpoint, form.tools, timeout_s

    @property
    def tools(self) -> Tools:
        """Of the server."""
        return self._tools

    def open(self) -> Environment:
        """A session, begun with its first call."""
        return _Session(self._endpoint, self._tools, self._timeout_s)

    def taken_restarts(self) -> int:
        """The server is somebody else's."""
        return 0

    async def stop(self) -> None:
        """Nothing runs between episodes."""


class _Session:
    """An Environment: a session of the server's, and what was said in it."""

    def __init__(self, endpoint: Endpoint, tools: Tools, timeout_s: float) -> None:
        self._endpoint, self._tools, self._timeout_s = endpoint, tools, timeout_s
        self._names = frozenset(str(tool["function"]["name"]) for tool in tools)
        self._client: aiohttp.ClientSession | None = None
        self._row: dict[str, Any] = {}
        self._said: list[dict[str, Any]] = []

    async def reset(self, row: Mapping[str, Any], seed: int) -> str:
        """The row's turns and tools are the request that the server is told of."""
        self._client = open_session(2, cookies=True)
        columns = {name: value for name, value in row.items() if name != "prompt"}
        given = columns.get("responses_create_params")
        asked = {
            **(given if isinstance(given, dict) else {}),
            "input": row.get("prompt", []),
            "tools": [_as_response_tool(tool) for tool in self._tools],
        }
        self._row = {**columns, "responses_create_params": asked}
        await self._json(_SEED, self._row)
        return ""

    async def step(self, action: ToolCall | str) -> Outcome:
        if isinstance(action, str):
            return Outcome("", done=True)  # it called no tool: this is its answer
        call = f"call_{len(self._said)}"
        self._said.append(_call_item(call, action))
        told = await self._told(action)
        self._said.append(_output_item(call, told))
        return Outcome(told)

    async def final_reward(self, answer: str) -> float | None:
        self._said.append(_message_item(f"msg_{len(self._said)}", answer))
        response = _response(self._said, self._row["responses_create_params"]["tools"])
        reply = await self._json(_VERIFY, {**self._row, "response": response})
        failed = reply.get("_ng_failure_class") or (reply.get("mask_sample") is True and "mask_sample")
        if failed:
            why = " ".join(str(reply[key]) for key in ("failure_kind", "failure_reason") if reply.get(key))
            raise EnvironmentFailure(f"the server could not judge ({failed}) {why[:200]}".rstrip())
        if (reward := number(reply.get("reward"))) is None:
            raise EnvironmentFailure(f"its answer to {_VERIFY} has no reward, but {', '.join(sorted(reply)[:6])}")
        return reward

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def _told(self, action: ToolCall) -> str:
        """Asked once: a tool may do something, and doing it again is not for us to decide."""
        if action.name not in self._names:
            return told_error(f"Tool {action.name} not found.")
        assert self._client is not None, "reset comes first"
        try:
            status, text = await post_text(
                self._client, self._endpoint.at(f"/{action.name}"), dict(action.arguments), timeout_s=self._timeout_s
            )
        except EndpointError as error:
            raise EnvironmentFailure(str(error)) from error
        if status >= 500 or 300 <= status < 400 or status in _NOT_THE_CALLS:
            raise EnvironmentFailure(f"the tool {action.name} answered {status}")
        return text

    async def _json(self, path: str, body: object) -> Mapping[str, Any]:
        assert self._client is not None, "reset comes first"
        until = asyncio.get_running_loop().time() + self._timeout_s
        try:
            reply = await post_json(self._client, self._endpoint.at(path), body, until=until)
        except EndpointError as error:
            raise EnvironmentFailure(str(error)) from error
        if not isinstance(reply, dict):
            raise EnvironmentFailure(f"its answer to {path} is {type(reply).__name__}, no object")
        return reply


async def look(endpoint: Endpoint, arguments: Mapping[str, str], *, timeout_s: float) -> Form:
    """Its tools, by its own description of its routes. Raises EnvironmentRefused for what is no resources server."""
    if arguments:
        raise EnvironmentRefused(
            f"environment.arguments.{min(arguments)} is not read with a NeMo Gym server; leave it out"
        )
    async with open_session(1) as client:
        try:
            described = await get_json(client, endpoint.at("/openapi.json"), timeout_s=timeout_s)
        except EndpointError as error:
            raise EnvironmentRefused(
                f"{error}; start the server, or see whether host, port and path are right"
            ) from error
    return Form(tools_of(described))


def tools_of(described: object) -> Tools:
    """The POST routes of an OpenAPI description. Raises EnvironmentRefused for what is no resources server."""
    routes = _inside(described, "paths")
    if not {_SEED, _VERIFY} <= routes.keys():
        raise EnvironmentRefused(f"it has no routes {_SEED} and {_VERIFY}, so it is no NeMo Gym resources server")
    posts = {
        path: _inside(route, "post")
        for path, route in routes.items()
        if path not in _NO_TOOLS and isinstance(route, dict) and "post" in route
    }
    return tuple(
        schema_of(path.lstrip("/"), str(post.get("description") or post.get("summary") or ""), _body(post, described))
        for path, post in sorted(posts.items())
        if "/" not in path.lstrip("/") and "{" not in path
    )


def _body(post: Mapping[str, Any], described: Any) -> Mapping[str, Any]:
    """The JSON schema of a route's body, with what it refers to."""
    schema = _inside(post, "requestBody", "content", "application/json", "schema")
    whole = _inside(_resolved(schema, _inside(described, "components", "schemas"), ()))
    return {name: value for name, value in whole.items() if name != "title"} or {"type": "object", "properties": {}}


def _inside(value: Any, *names: str) -> dict[str, Any]:
    """The object at these names; an empty one where there is none."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _resolved(schema: Any, named: Mapping[str, Any], within: Sequence[str]) -> Any:
    """References written out; one that contains itself is left as any object."""
    if isinstance(schema, list):
        return [_resolved(one, named, within) for one in schema]
    if not isinstance(schema, dict):
        return schema
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    if name:
        return {"type": "object"} if name in within else _resolved(named.get(name, {}), named, (*within, name))
    return {key: _resolved(value, named, within) for key, value in schema.items()}


def _as_response_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    return {"type": "function", "strict": False, **{k: function[k] for k in ("name", "description", "parameters")}}


def _call_item(call: str, action: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(dict(action.arguments), ensure_ascii=False)
    return {
        "type": "function_call",
        "call_id": call,
        "name": action.name,
        "arguments": arguments,
        "status": "completed",
    }


def _output_item(call: str, text: str) -> dict[str, Any]:
    return {"type": "function_call_output", "id": f"fo_{call}", "call_id": call, "output": text, "status": "completed"}


def _message_item(name: str, text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "id": name, "role": "assistant", "status": "completed", "content": content}


def _response(output: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As OpenAI's Responses API gives one."""
    return {
        "id": "resp_0",
        "object": "response",
        "created_at": time.time(),
        "model": _MODEL,
        "output": list(output),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": list(tools),
    }
