"""What an environment is, so that nothing that plays an episode knows whose it is. Pure: standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class EnvironmentRefused(ValueError):
    """An environment that cannot be used; the message says why and what to do, without naming the setting."""


class EnvironmentFailure(RuntimeError):
    """An episode whose reward cannot be had, because its environment raised, hung or broke its contract."""


class EnvironmentLost(EnvironmentFailure):
    """An episode whose environment has ended through no fault of its own: it may be played again from its start."""


def told_error(reason: str) -> str:
    """What the model reads when a call failed, as TRL writes it."""
    return str({"error": reason})


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model asks for."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a step."""

    observation: str  # what the model reads next; "" when the episode is over and nobody reads it
    reward: float | None = None  # for this step; None: none
    done: bool = False  # the episode is over


class Environment(Protocol):
    """One episode's environment. Calls come one after another; each may raise EnvironmentFailure."""

    async def reset(self, row: Mapping[str, Any], seed: int) -> str:
        """Begin. The text goes to the end of the prompt's last turn; "": nothing. The same row and seed have to give
        the same text: the samples of one prompt share it."""
        ...

    async def step(self, action: ToolCall | str) -> Outcome:
        """A call of a tool, or what the model said when it called none."""
        ...

    async def final_reward(self, answer: str) -> float | None:
        """Asked once at the end, however it came: `answer` is what the model said last. None: no reward of the end."""
        ...

    async def close(self) -> None:
        """The episode is over, or given up. Idempotent, and never raises."""
        ...


class Environments(Protocol):
    """Where the environments of one process's episodes live."""

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """JSON schemas of the tools, in the form that chat templates print; empty: the environment is talked to."""
        ...

    def open(self) -> Environment:
        """One for an episode, not begun."""
        ...

    def taken_restarts(self) -> int:
        """How often what serves them was started again since this was asked last."""
        ...

    async def stop(self) -> None:
        """End what serves them."""
        ...
