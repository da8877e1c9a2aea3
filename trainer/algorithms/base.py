"""What an algorithm is: the roles it needs, how it turns scores into advantages, and its losses. Pure; no Ray.

The loops and workers know algorithms only through these Protocols; they never ask for a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from torch import Tensor

from data.types import CriticExperience, Denominators, PairBatch, PolicyExperience, ScoredBatch, TokenOutputs


class Role(Enum):
    """A part of the cluster. An algorithm lists the ones it needs; nothing else is started."""

    POLICY = "policy"
    CRITIC = "critic"
    REFERENCE = "reference"
    REWARD = "reward"
    ROLLOUT = "rollout"


@dataclass(frozen=True, slots=True)
class MetricSum:
    """A mean that can be added up over micro-batches and ranks: `total / count`, both summed first."""

    total: Tensor  # [] float32, detached
    count: Tensor  # [] float32


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss already divided by the global denominators: summed over micro-batches and ranks it *is* the loss."""

    loss: Tensor  # [] with gradient
    metrics: Mapping[str, MetricSum]  # key: the name without its group, e.g. "clip_fraction"; the learner adds "loss"


@dataclass(frozen=True, slots=True)
class AdvantageEstimate:
    """Advantages (whitened or baselined as the algorithm says) of a ScoredBatch."""

    advantages: Tensor  # [N], zero off-mask
    returns: Tensor | None  # [N], zero off-mask; None without a critic
    metrics: Mapping[str, float]  # e.g. "reward/zero_variance_groups", full `group/name` keys


class OnlineAlgorithm(Protocol):
    """PPO and its relatives. `kl_coef` is the controller's present value."""

    @property
    def roles(self) -> frozenset[Role]: ...

    def estimate(self, batch: ScoredBatch, *, kl_coef: float) -> AdvantageEstimate:
        """Advantages and returns of the whole step at once, so that every statistic is global."""
        ...

    def policy_loss(
        self, outputs: TokenOutputs, batch: PolicyExperience, denominators: Denominators, *, kl_coef: float
    ) -> LossOutput: ...


class ActorCriticAlgorithm(OnlineAlgorithm, Protocol):
    """An online algorithm with a learned critic."""

    def value_loss(self, values: Tensor, batch: CriticExperience, denominators: Denominators) -> LossOutput:
        """`values` is `[N]`, aligned as `CriticExperience.old_values`."""
        ...


class PairwiseAlgorithm(Protocol):
    """An offline algorithm over preference pairs with a scalar model (reward-model training)."""

    @property
    def roles(self) -> frozenset[Role]: ...

    def pair_loss(self, scores: Tensor, batch: PairBatch, denominators: Denominators) -> LossOutput:
        """`scores` is `[2P]`: the scalar of each sequence's last token, chosen and rejected alternating."""
        ...
