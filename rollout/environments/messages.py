"""Messages between the process of a user's own environments and its parent. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from raylign.reward.function_messages import FunctionCode
from raylign.rollout.environments.interfaces import Outcome, ToolCall


class Verb(Enum):
    """What is asked of an episode's environment."""

    RESET = "reset"
    STEP = "step"
    FINAL_REWARD = "the reward"
    CLOSE = "close"
    PING = "ping"  # of the process itself


@dataclass(frozen=True, slots=True)
class Hello:
    """The parent's first message."""

    code: FunctionCode
    arguments: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ready:
    """The answer to it. `problem` is empty when episodes can be played."""

    problem: str
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """A call. Of its fields those are read that its verb has."""

    number: int
    episode: int
    verb: Verb
    row: Mapping[str, Any] | None = None
    seed: int = 0
    action: ToolCall | str = ""  # of FINAL_REWARD: what the model said last


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of the call of that number."""

    number: int
    value: Outcome | float | str | None = None
    failure: str = ""
