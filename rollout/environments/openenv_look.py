"""What an OpenEnv server offers, seen before a run starts (protocol: openenv.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from raylign.reward.http_json import Endpoint, EndpointError, get_json, open_session, shortened
from raylign.rollout.environments.interfaces import EnvironmentFailure, EnvironmentRefused
from raylign.rollout.environments.openenv_connection import NO_ROOM, Connection, ServerError
from raylign.rollout.environments.served_values import Form, Tools, schema_of

STEP = "step"
"""The one tool of an environment that lists none: its action."""


async def look(endpoint: Endpoint, arguments: Mapping[str, str], *, sessions: int, timeout_s: float) -> Form:
    """What the server offers, seen in `sessions` sessions at once. Raises EnvironmentRefused."""
    if unknown := sorted(arguments.keys() - {"text", "observation"}):
        raise EnvironmentRefused(
            f"environment.arguments.{unknown[0]} is not read with an OpenEnv server; give text or observation, fields "
            "of its action and observation"
        )
    text, observation = arguments.get("text", ""), arguments.get("observation", "")
    async with open_session(0) as client:
        connections = [Connection(client, endpoint) for _ in range(sessions)]
        try:
            async with asyncio.timeout(timeout_s):
                found = (await asyncio.gather(*(_listed(connection) for connection in connections)))[0]
                schema = await get_json(client, endpoint.at("/schema"), timeout_s=timeout_s)
        except TimeoutError as error:
            raise EnvironmentRefused(
                f"the server did not answer within {timeout_s:g} s; see whether it runs"
            ) from error
        except ServerError as error:
            if error.code != NO_ROOM:
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
            await asyncio.gather(*(connection.close() for connection in connections))
    if text:
        return Form((), text=_field(schema, text), observation=observation)
    return Form(found, True, "", observation) if found else Form((_step_tool(schema),), False, "", observation)


async def _listed(connection: Connection) -> Tools:
    """Its tools by MCP; () for a server that has none."""
    await connection.connect()
    try:
        answer = await connection.ask("mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}, "mcp")
    except ServerError as error:
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
    return schema_of(STEP, about, {"type": "object", "properties": properties, **kept})


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
