"""What the glossary says of one metric."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Goal(Enum):
    """Which way is better, where one is."""

    UP = "up"
    DOWN = "down"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class MetricHelp:
    """One metric or family of metrics. `low`/`high` bound the healthy range; None leaves that side open."""

    pattern: str
    title: str
    unit: str
    meaning: str
    action: str = ""
    low: float | None = None
    high: float | None = None
    goal: Goal = Goal.NONE
