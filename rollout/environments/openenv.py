"""Environments behind an OpenEnv server: one WebSocket session an episode (snapshot of the protocol: 2026-05).

    out {"type": "reset", "data": {}} | {"type": "step", "data": action} | {"type": "close"}
        {"type": "mcp", "data": JSON-RPC}
    in  {"type": "observation", "data": {"observation", "reward", "done"}} | {"type": "mcp", "data": JSON-RPC}
        {"type": "error", "data": {"message", "code"}}

Its tools are those that it lists by MCP; without any, its action is the one tool `step`, or what the model says is one
field of it. A session lives as long as its connection: one that breaks loses its episode, which is played again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any

import aiohttp
from raylign.reward.http_json import MAX_REPLY_BYTES, Endpoint, EndpointError, get_json, open_session, shortened, shown
from raylign.rollout.environments.interfaces import (
    Environment,
    EnvironmentFailure,
    EnvironmentLost,
    EnvironmentRefused,
    Outcome,
    ToolCall,
    told_error,
)
from raylign.rollout.environments.served_values import Form, Tools, number, schema_of, shown_text

_CLOSE_S = 2.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_STEP = "step"
_GONE = frozenset({"SESSION_ERROR"})
_FULL = "CAPACITY_REACHED"
_BROKEN = frozenset({"timeout", "transport_error"})  # of a tool, and none of the model's doing


class _ServerError(Exception):
    """An answer of type "error"."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class OpenEnvironments:
    """An Environments over a server."""

    def __init__(self, endpoint: Endpoint, form: Form, *, timeout_s: float) -> None:
        """`timeout_s`: of one call, connecting and waiting for room included."""
        self._endpoint, self._form, self._timeout_s = endpoint, form, timeout_s
        self._client: aiohttp.ClientSession | None = None

    @property
    def tools(self) -> Tools:
        """Of the server."""
        return self._form.tools

    def open(self) -> Environment:
        """A session, begun with its first call."""
        if self._client is None:
            self._client = open_session(0)
        return _Session(_Line(self._client, self._endpoint), self._form, self._timeout_s)

    def taken_restarts(self) -> int:
        """The server is somebody else's."""
        return 0

    async def stop(self) -> None:
        """Close what is open."""
        if self._client is not None:
            await self._client.close()


class _Line:
    """A connection: messages out and in."""

    def __init__(self, client: aiohttp.ClientSession, endpoint: Endpoint) -> None:
        self._client, self._endpoint = client, endpoint
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def connect(self) -> None:
        """Raises ConnectionError, and EnvironmentFailure for an answer that no waiting makes better."""
        where = shown(self._endpoint.url)
        try:
            self._socket = await self._client.ws_connect(
                f"{self._endpoint.url}/ws",
                headers=self._endpoint.headers,
                max_msg_size=MAX_REPLY_BYTES,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
            )
        except aiohttp.WSServerHandshakeError as error:
            if error.status >= 500 or error.status == 429:
                raise ConnectionError(f"{where}/ws answered {error.status}") from error
            token = ", or wants another token (environment.token_env)" if error.status in (401, 403) else ""
            raise EnvironmentFailure(
                f"{where}/ws answered {error.status} to a WebSocket: it is no OpenEnv server{token}"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionError(f"{where}: no connection ({shortened(str(error))})") from error

    async def ask(self, kind: str, data: Mapping[str, Any] | None, answers: str) -> Mapping[str, Any]:
        """The data of its answer, which has to be of the type `answers`. Raises _ServerError, EnvironmentLost when the
        connection broke, and EnvironmentFailure for what is no answer of the protocol."""
        assert self._socket is not None, "connect comes first"
        try:
            await self._socket.send_str(json.dumps({"type": kind} if data is None else {"type": kind, "data": data}))
            got = await self._socket.receive()
        except (aiohttp.ClientError, OSError) as error:
            raise EnvironmentLost(f"the connection to {shown(self._endpoint.url)} broke") from error
        if got.type is not aiohttp.WSMsgType.TEXT:
            raise EnvironmentLost(f"the connection to {shown(self._endpoint.url)} was closed")
        with contextlib.suppress(ValueError, RecursionError):
            read = json.loads(got.data)
            if isinstance(read, dict) and isinstance(body := read.get("data"), dict):
                if read.get("type") == answers:
                    return body
                if read.get("type") == "error":
                    raise _ServerError(str(body.get("code")), _said(body))
        raise EnvironmentFailure(f"the answer to {kind} is none of OpenEnv's protocol: {shortened(str(got.data))!r}")

    async def close(self) -> None:
        """Never raises, and takes a bounded time."""
        socket, self._socket = self._socket, None
        if socket is None:
            return
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await socket.send_str(json.dumps({"type": "close"}))
        with contextlib.suppress(aiohttp.ClientError, OSError):
            await socket.close()


class _Session:
    """An Environment: one session of the server's."""

    def __init__(self, line: _Line, form: Form, timeout_s: float) -> None:
        self._line, self._form, self._timeout_s = line, form, timeout_s
        self._paid = False

    async def reset(self, row: Mapping[str, Any], seed: int) -> str:
        """Waits for a server that starts again, or has no room, until the deadline."""
        data = {"seed": seed, **{name: value for name, value in row.items() if name != "prompt"}}
        pause, why = _FIRST_PAUSE_S, "the server did not answer"
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    try:
                        await self._line.connect()
                        begun = self._outcome(await self._line.ask("reset", data, "observation"))
                        self._paid = False  # some servers give 0 for having begun
                        return f"\n\n{begun.observation}" if begun.observation else ""
                    except (ConnectionError, EnvironmentLost) as error:
                        why = str(error)
                    except _ServerError as error:
                        if error.code != _FULL:
                            raise EnvironmentFailure(f"reset: {error}") from error
                        why = f"{error}; raise the server's max_concurrent_envs"
                    await self._line.close()
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_S)
        except TimeoutError as error:
            raise EnvironmentFailure(f"reset did not answer within {self._timeout_s:g} s: {why}") from error

    async def step(self, action: ToolCall | str) -> Outcome:
        data = self._action(action)
        if isinstance(data, Outcome):
            return data
        try:
            async with asyncio.timeout(self._timeout_s):
                return self._outcome(await self._line.ask("step", data, "observation"))
        except TimeoutError as error:
            raise EnvironmentFailure(f"step did not answer within {self._timeout_s:g} s") from error
        except _ServerError as error:
            if error.code == "VALIDATION_ERROR":  # the model's arguments, which it is told of
                return Outcome(told_error(error.message))
            kind = EnvironmentLost if error.code in _GONE else EnvironmentFailure
            raise kind(f"step: {error}") from error

    async def final_reward(self, answer: str) -> float | None:
        """What the steps gave is all there is: nothing, when the model took none that is paid."""
        return None if self._paid else 0.0

    async def close(self) -> None:
        await self._line.close()

    def _action(self, action: ToolCall | str) -> Mapping[str, Any] | Outcome:
        """The data of a step; an Outcome where the server need not be asked."""
        if isinstance(action, str):
            return {self._form.text: action} if self._form.text else Outcome("", done=True)  # its answer
        if self._form.by_mcp:
            return {"type": "call_tool", "tool_name": action.name, "arguments": dict(action.arguments)}
        return dict(action.arguments) if action.name == _STEP else Outcome(told_error(f"Tool {action.name} not found."))

    def _outcome(self, data: Mapping[str, Any]) -> Outcome:
        observation, done = data.get("observation"), data.get("done")
        if not isinstance(observation, dict) or not isinstance(done, bool):
            raise EnvironmentFailure(f"an observation of OpenEnv has observation and done, not {sorted(data)[:6]}")
        reward = number(data.get("reward"))
        self._paid = self._paid or reward is not None
        return Outcome(_read(observation, self._form.observation), reward, done)


async def look(endpoint: Endpoint, arguments: Mapping[str, str], *, sessions: int, timeout_s: float) -> Form:
    """What the server offers, seen in `sessions` sessions at once. Raises EnvironmentRefused."""
    if unknown := sorted(arguments.keys() - {"text", "observation"}):
        raise EnvironmentRefused(
            f"environment.arguments.{unknown[0]} is not read with an OpenEnv server; give text or observation, fields "
            "of its action and observation"
        )
    text, observation = arguments.get("text", ""), arguments.get("observation", "")
    async with open_session(0) as client:
        lines = [_Line(client, endpoint) for _ in range(sessions)]
        try:
            async with asyncio.timeout(timeout_s):
                found = (await asyncio.gather(*(_listed(line) for line in lines)))[0]
                schema = await get_json(client, endpoint.at("/schema"), timeout_s=timeout_s)
        except TimeoutError as error:
            raise EnvironmentRefused(
                f"the server did not answer within {timeout_s:g} s; see whether it runs"
            ) from error
        except _ServerError as error:
            if error.code != _FULL:
                raise EnvironmentRefused(f"the server refuses a session: {error}") from error
            raise EnvironmentRefused(
                f"the server has no room for the {sessions} samples of a prompt ({error.message}); raise its "
                "max_concurrent_envs to the episodes of a step"
            ) from error
        except (ConnectionError, EndpointError, EnvironmentFailure) as error:
            raise EnvironmentRefused(
                f"{error}; start the server, or see whether host, port and path are right"
            ) from error
        finally:
            await asyncio.gather(*(line.close() for line in lines))
    if text:
        return Form((), text=_field(schema, text), observation=observation)
    return Form(found, True, "", observation) if found else Form((_step_tool(schema),), False, "", observation)


async def _listed(line: _Line) -> Tools:
    """Its tools by MCP; () for a server that has none."""
    await line.connect()
    try:
        answer = await line.ask("mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}, "mcp")
    except _ServerError as error:
        if error.code in ("UNKNOWN_TYPE", "VALIDATION_ERROR"):  # a server of before there was MCP
            return ()
        raise
    result = answer.get("result")
    listed = result.get("tools") if isinstance(result, dict) else None
    return tuple(_mcp_tool(tool) for tool in listed) if isinstance(listed, list) else ()


def _mcp_tool(tool: object) -> Mapping[str, Any]:
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        raise EnvironmentRefused(f"it lists {shortened(str(tool))} as a tool, which has no name")
    parameters = tool.get("inputSchema") or tool.get("input_schema") or {"type": "object", "properties": {}}
    return schema_of(tool["name"], str(tool.get("description") or ""), parameters)


def _step_tool(schema: object) -> Mapping[str, Any]:
    action = _action_schema(schema)
    properties = {name: value for name, value in action["properties"].items() if name != "metadata"}
    kept = {name: value for name, value in action.items() if name in ("$defs", "required")}
    about = str(action.get("description") or "Act in the environment.").strip()
    return schema_of(_STEP, about, {"type": "object", "properties": properties, **kept})


def _field(schema: object, text: str) -> str:
    if text not in (known := _action_schema(schema)["properties"]):
        raise EnvironmentRefused(
            f"environment.arguments.text={text}: its action has no such field; it has "
            f"{', '.join(name for name in known if name != 'metadata')}"
        )
    return text


def _action_schema(schema: object) -> Mapping[str, Any]:
    action = schema.get("action") if isinstance(schema, dict) else None
    if not isinstance(action, dict) or not isinstance(action.get("properties"), dict):
        raise EnvironmentRefused("its /schema has no action with properties, as OpenEnv's has; see whether it is one")
    return action


def _read(observation: Mapping[str, Any], field: str) -> str:
    """What the model reads. Raises EnvironmentFailure for a field that is not there."""
    if field and field not in observation:
        raise EnvironmentFailure(
            f"the observation has no {field} (environment.arguments.observation); it has {sorted(observation)}"
        )
    if field:
        return shown_text(observation[field])
    if isinstance(error := observation.get("error"), dict) and "tool_name" in observation:
        if error.get("error_type") in _BROKEN:
            raise EnvironmentFailure(f"the tool {observation['tool_name']}: {shortened(str(error.get('message')))}")
        return told_error(str(error.get("message")))
    if "tool_name" in observation and "result" in observation:
        return shown_text(observation["result"])
    told = {
        name: value for name, value in observation.items() if name != "metadata" and value not in (None, "", [], {})
    }
    return shown_text(next(iter(told.values())) if len(told) == 1 else told) if told else ""


def _said(body: Mapping[str, Any]) -> str:
    """An error's message, and for each field that is wrong its own."""
    errors = body.get("errors")
    wrong = [e for e in errors if isinstance(e, dict)] if isinstance(errors, list) else []
    each = "; ".join(f"{'.'.join(map(str, e.get('loc', ())))}: {e.get('msg')}" for e in wrong[:4])
    return shortened(f"{body.get('message')}{f' ({each})' if each else ''}")
