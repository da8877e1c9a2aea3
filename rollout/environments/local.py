"""Environments in this process: the shipped ones, whose code is known not to hang; the deadline holds all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from raylign.rollout.environments.interfaces import (
    Environment,
    EnvironmentFailure,
    Outcome,
    ToolCall,
)
from raylign.rollout.environments.objects import as_environment, made_by, tools_of

T = TypeVar("T")


class LocalEnvironments:
    """An Environments over a class."""

    def __init__(self, factory: Callable[..., object], arguments: Mapping[str, str], *, timeout_s: float) -> None:
        """`timeout_s`: of one call. Raises EnvironmentRefused when the class cannot be used."""
        self._factory, self._arguments, self._timeout_s = factory, dict(arguments), timeout_s
        self._tools = tools_of(made_by(factory, self._arguments))

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """Of the class."""
        return self._tools

    def open(self) -> Environment:
        """A new object."""
        return _Timed(as_environment(made_by(self._factory, self._arguments)), self._timeout_s)

    def taken_restarts(self) -> int:
        """Nothing is started here."""
        return 0

    async def stop(self) -> None:
        """Nothing runs."""


class _Timed:
    """An environment whose calls have a deadline. A call in a thread that is late is left behind."""

    def __init__(self, environment: Environment, timeout_s: float) -> None:
        self._environment, self._timeout_s = environment, timeout_s

    async def reset(self, row: Mapping[str, Any], seed: int) -> str:
        return await self._within("reset", self._environment.reset(row, seed))

    async def step(self, action: ToolCall | str) -> Outcome:
        what = "step" if isinstance(action, str) else f"the tool {action.name}"
        return await self._within(what, self._environment.step(action))

    async def final_reward(self, answer: str) -> float | None:
        return await self._within("the reward", self._environment.final_reward(answer))

    async def close(self) -> None:
        await self._environment.close()

    async def _within(self, what: str, call: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await call
        except TimeoutError as error:
            raise EnvironmentFailure(f"{what} did not answer within {self._timeout_s:g} s") from error
