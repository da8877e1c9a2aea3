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
from collections.abc import Mapping
from typing import Any

import aiohttp
from raylign.reward.http_json import Endpoint, open_session, shortened
from raylign.rollout.environments.interfaces import (
    Environment,
    EnvironmentFailure,
    EnvironmentLost,
    Outcome,
    ToolCall,
    told_error,
)
from raylign.rollout.environments.openenv_connection import NO_ROOM, Connection, ServerError
from raylign.rollout.environments.openenv_look import STEP
from raylign.rollout.environments.served_values import Form, Tools, number, shown_text

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_GONE = frozenset({"SESSION_ERROR"})
_BROKEN = frozenset({"timeout", "transport_error"})  # of a tool, and none of the model's doing


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
        return _Session(Connection(self._client, self._endpoint), self._form, self._timeout_s)

    def taken_restarts(self) -> int:
        """The server is somebody else's."""
        return 0

    async def stop(self) -> None:
        """Close what is open."""
        if self._client is not None:
            await self._client.close()


class _Session:
    """An Environment: one session of the server's."""

    def __init__(self, connection: Connection, form: Form, timeout_s: float) -> None:
        self._connection, self._form, self._timeout_s = connection, form, timeout_s
        self._paid = False

    async def reset(self, row: Mapping[str, Any], seed: int) -> str:
        """Waits for a server that starts again, or has no room, until the deadline."""
        data = {"seed": seed, **{name: value for name, value in row.items() if name != "prompt"}}
        pause, why = _FIRST_PAUSE_S, "the server did not answer"
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    try:
                        await self._connection.connect()
                        begun = self._outcome(await self._connection.ask("reset", data, "observation"))
                        self._paid = False  # some servers give 0 for having begun
                        return f"\n\n{begun.observation}" if begun.observation else ""
                    except (ConnectionError, EnvironmentLost) as error:
                        why = str(error)
                    except ServerError as error:
                        if error.code != NO_ROOM:
                            raise EnvironmentFailure(f"reset: {error}") from error
                        why = f"{error}; raise the server's max_concurrent_envs"
                    await self._connection.close()
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_S)
        except TimeoutError as error:
            raise EnvironmentFailure(f"reset did not answer within {self._timeout_s:g} s: {why}") from error

    async def step(self, action: ToolCall | str) -> Outcome:
        """Wrong arguments are an observation. Raises EnvironmentLost for a lost session, else EnvironmentFailure."""
        data = self._action(action)
        if isinstance(data, Outcome):
            return data
        try:
            async with asyncio.timeout(self._timeout_s):
                return self._outcome(await self._connection.ask("step", data, "observation"))
        except TimeoutError as error:
            raise EnvironmentFailure(f"step did not answer within {self._timeout_s:g} s") from error
        except ServerError as error:
            if error.code == "VALIDATION_ERROR":  # the model's arguments, which it is told of
                return Outcome(told_error(error.message))
            kind = EnvironmentLost if error.code in _GONE else EnvironmentFailure
            raise kind(f"step: {error}") from error

    async def final_reward(self, answer: str) -> float | None:
        """What the steps gave is all there is: nothing, when the model took none that is paid."""
        return None if self._paid else 0.0

    async def close(self) -> None:
        await self._connection.close()

    def _action(self, action: ToolCall | str) -> Mapping[str, Any] | Outcome:
        """The data of a step; an Outcome where the server need not be asked."""
        if isinstance(action, str):
            return {self._form.text: action} if self._form.text else Outcome("", done=True)  # its answer
        if self._form.by_mcp:
            return {"type": "call_tool", "tool_name": action.name, "arguments": dict(action.arguments)}
        return dict(action.arguments) if action.name == STEP else Outcome(told_error(f"Tool {action.name} not found."))

    def _outcome(self, data: Mapping[str, Any]) -> Outcome:
        observation, done = data.get("observation"), data.get("done")
        if not isinstance(observation, dict) or not isinstance(done, bool):
            raise EnvironmentFailure(f"an observation of OpenEnv has observation and done, not {sorted(data)[:6]}")
        reward = number(data.get("reward"))
        self._paid = self._paid or reward is not None
        return Outcome(_read(observation, self._form.observation), reward, done)


def _read(observation: Mapping[str, Any], field: str) -> str:
    """What the model reads. Raises EnvironmentFailure for a field that is not there."""
    if field and field not in observation:
        raise EnvironmentFailure(
            f"the observation has no {field} (environment.arguments.observation); it has {sorted(observation)}"
        )
    if field:
        return shown_text(observation[field])
    if isinstance(error := observation.get("error"), dict) and "tool_name" in observation:
        if str(error.get("error_type")) in _BROKEN:
            raise EnvironmentFailure(f"the tool {observation['tool_name']}: {shortened(str(error.get('message')))}")
        return told_error(str(error.get("message")))
    if "tool_name" in observation and "result" in observation:
        return shown_text(observation["result"])
    told = {
        name: value for name, value in observation.items() if name != "metadata" and value not in (None, "", [], {})
    }
    return shown_text(next(iter(told.values())) if len(told) == 1 else told) if told else ""
