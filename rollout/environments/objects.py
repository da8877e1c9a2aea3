"""A plain object in TRL's form (`environment_factory`), or one with `reset` and `step` of its own, as an Environment.

TRL's form: public methods are tools; `reset(**row)` may give text; `get_reward()` is the reward of the end. What TRL
leaves open: `get_reward(answer)` is given what the model said last, an attribute `done` that is true ends the episode,
and `close()` is called at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from raylign.reward.function_call import error_message, error_text
from raylign.rollout.environments.interfaces import (
    Environment,
    EnvironmentFailure,
    EnvironmentRefused,
    Outcome,
    ToolCall,
    told_error,
)
from raylign.rollout.environments.tools import tool_methods, tool_schema


def tools_of(made: object) -> tuple[Mapping[str, Any], ...]:
    """Schemas of the tools of an environment object. Raises EnvironmentRefused for a method that cannot be one."""
    if is_own_protocol(made):
        return _given_tools(getattr(made, "tools", ()))
    methods = tool_methods(made)
    if not methods:
        raise EnvironmentRefused(
            "it has no public method beside reset and get_reward, so there is no tool to call; write one with type "
            "hints and a docstring, or the form with `async def step(self, action)`"
        )
    return tuple(tool_schema(name, method) for name, method in methods.items())


def _given_tools(given: object) -> tuple[Mapping[str, Any], ...]:
    schemas = tuple(given) if isinstance(given, list | tuple) else (given,) if given else ()
    for schema in schemas:
        function = schema.get("function") if isinstance(schema, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise EnvironmentRefused(
                f"its tools hold {str(schema)[:80]}, which is no tool's schema; give a list of "
                '{"type": "function", "function": {"name": ..., "parameters": {...}}}'
            )
    return schemas


def is_own_protocol(made: object) -> bool:
    """True for an object with coroutines `reset(row, seed)` and `step(action)`: no TRL tool is called step there."""
    step, reset = getattr(made, "step", None), getattr(made, "reset", None)
    if not (inspect.iscoroutinefunction(step) and inspect.iscoroutinefunction(reset)):
        return False
    return list(inspect.signature(reset).parameters)[:2] == ["row", "seed"]


def made_by(factory: Callable[..., object], arguments: Mapping[str, str]) -> object:
    """A new object. Raises EnvironmentRefused when its class cannot be called so."""
    try:
        return factory(**arguments)
    except Exception as error:  # a user's class may raise anything
        given = ", ".join(f"{name}=..." for name in arguments) or "nothing"
        raise EnvironmentRefused(f"it cannot be made when given {given}: {error_text(error)}; correct it") from error


def as_environment(made: object) -> Environment:
    """The object behind the protocol."""
    return _OwnProtocol(made) if is_own_protocol(made) else _ToolObject(made)


class _ToolObject:
    """TRL's form. What a tool raises goes back to the model; anything else that raises is a failure."""

    def __init__(self, made: object) -> None:
        self._made = made
        self._tools = tool_methods(made)

    async def reset(self, row: Mapping[str, Any], seed: int) -> str:
        reset = getattr(self._made, "reset", None)
        if reset is None:
            return ""
        given = await _called("reset", reset, _accepted(reset, {**row, "seed": seed}))
        return "" if given is None else str(given)

    async def step(self, action: ToolCall | str) -> Outcome:
        """A tool's answer, or what it raised, as text. Raises EnvironmentFailure where an answer cannot be had."""
        if isinstance(action, str):
            return Outcome("", done=True)  # it called no tool: this is its answer
        tool = self._tools.get(action.name)
        if tool is None:
            return Outcome(told_error(f"Tool {action.name} not found."))
        try:
            said = str(await _run(tool, action.arguments))
        except EnvironmentFailure:
            raise
        except Exception as error:  # whatever it is, wrong arguments too, the model is told
            said = told_error(error_message(error))
        return Outcome(said, done="done" not in self._tools and bool(getattr(self._made, "done", False)))

    async def final_reward(self, answer: str) -> float | None:
        get_reward = getattr(self._made, "get_reward", None)
        if get_reward is None:
            return None
        given = {"answer": answer} if "answer" in inspect.signature(get_reward).parameters else {}
        return _number("get_reward", await _called("get_reward", get_reward, given))

    async def close(self) -> None:
        await _closed(self._made)


class _OwnProtocol:
    """An object with the coroutines of the protocol; `final_reward` and `close` may be missing."""

    def __init__(self, made: object) -> None:
        self._made: Any = made

    async def reset(self, row: Mapping[str, Any], seed: int) -> str:
        given = await _called("reset", self._made.reset, {"row": row, "seed": seed})
        return "" if given is None else str(given)

    async def step(self, action: ToolCall | str) -> Outcome:
        given = await _called("step", self._made.step, {"action": action})
        if isinstance(given, Outcome):
            parts: tuple[Any, Any, Any] = (given.observation, given.reward, given.done)
        elif isinstance(given, tuple | list) and len(given) == 3:
            parts = (given[0], given[1], given[2])
        else:
            raise EnvironmentFailure(f"step gave {type(given).__name__}, not (observation, reward or None, done)")
        return Outcome("" if parts[0] is None else str(parts[0]), _number("step", parts[1]), bool(parts[2]))

    async def final_reward(self, answer: str) -> float | None:
        final = getattr(self._made, "final_reward", None)
        return (
            None if final is None else _number("final_reward", await _called("final_reward", final, {"answer": answer}))
        )

    async def close(self) -> None:
        await _closed(self._made)


async def _run(call: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """A coroutine here, anything else in a thread: it may take its time. Its answer may be to await (decorators)."""
    try:
        if inspect.iscoroutinefunction(call):
            return await call(**given)
        answer = await asyncio.to_thread(call, **given)
        return await answer if inspect.isawaitable(answer) else answer
    except SystemExit as error:  # it would end the event loop, and every other episode with it
        raise EnvironmentFailure(f"it called sys.exit({error.code!r})") from error


async def _called(what: str, call: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    try:
        return await _run(call, given)
    except EnvironmentFailure:
        raise
    except Exception as error:  # a user's code may raise anything
        raise EnvironmentFailure(f"{what} raised {error_text(error)}") from error


async def _closed(made: object) -> None:
    close = getattr(made, "close", None)
    if close is not None:
        with contextlib.suppress(Exception):  # the episode is over; there is nobody to tell
            await _run(close, {})


def _accepted(call: Callable[..., Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `call` takes by name of `given`: all of it with **kwargs. A seed goes only to whoever names it."""
    parameters = inspect.signature(call).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return {name: value for name, value in given.items() if name != "seed" or name in parameters}
    return {name: value for name, value in given.items() if name in parameters}


def _number(what: str, value: object) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)  # type: ignore[arg-type]  # whatever it is
    except (TypeError, ValueError, OverflowError) as error:
        raise EnvironmentFailure(f"{what} gave {type(value).__name__} as reward, not a number") from error
    if not math.isfinite(number):
        raise EnvironmentFailure(f"{what} gave {number} as reward")
    return number
