"""What gives rewards. Pure: standard library and data.types only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from raylign.data.types import Completion, Prompt, RewardOutcome, RolloutGroup


class RewardRule(Protocol):
    """A checkable reward: a pure function of prompt and completion.

    Raises `RewardRuleError` when no score can be given; that becomes a `RewardFailure`, never 0.
    """

    def __call__(self, prompt: Prompt, completion: Completion) -> float: ...


class RewardRuleError(ValueError):
    """A rule could not score this sample; the message says why."""


class ModelLost(RuntimeError):
    """A process that holds a part of a reward model is gone or late: its replica cannot score any more."""


@dataclass(frozen=True, slots=True)
class WeightedComponent:
    """One part of a composed reward."""

    name: str
    weight: float


class RewardScorer(Protocol):
    """Scores whole groups; one outcome for each completion, in order."""

    def score(self, groups: Sequence[RolloutGroup]) -> list[RewardOutcome]: ...


@dataclass(frozen=True, slots=True)
class ShapingState:
    """Running statistics of the reward normaliser; saved in the checkpoint."""

    count: float
    mean: float
    m2: float

    def as_dict(self) -> Mapping[str, float]:
        """Plain numbers for the checkpoint."""
        return {"count": self.count, "mean": self.mean, "m2": self.m2}
