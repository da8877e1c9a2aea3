"""What an algorithm is: the roles it needs, how it turns scores into advantages, and its losses. Pure; no Ray.

The loops and workers know algorithms only through these Protocols; they never ask for a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from raylign.data.types import (
    CriticExperience,
    Denominators,
    PolicyExperience,
    RowKind,
    ScoredBatch,
    TokenBatch,
    TokenOutputs,
)
from torch import Tensor


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
    # key: the name without its group, e.g. "clip_fraction", or in full, "rollout/logprob_gap"; the learner adds "loss"
    metrics: Mapping[str, MetricSum]
    maxima: Mapping[str, Tensor] = field(default_factory=dict)  # [] each; the largest over micro-batches and ranks


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


class ModelKind(Enum):
    """The head of the model in training."""

    CAUSAL = "causal"
    SCALAR = "scalar"


@dataclass(frozen=True, slots=True)
class OfflineNeeds:
    """What an offline algorithm learns from and what it trains."""

    rows: RowKind
    model: ModelKind
    train_prompts: bool = False  # of pairs: the chosen side's prompt is trained too


class CausalAlgorithm(Protocol):
    """An offline algorithm with a language model. `loss` sums to the loss of the step over all of its micro-batches."""

    @property
    def roles(self) -> frozenset[Role]: ...
    @property
    def needs(self) -> OfflineNeeds: ...

    def loss(self, outputs: TokenOutputs, batch: Any, denominators: Denominators) -> LossOutput:
        """`batch` is of the type that belongs to `needs.rows`."""
        ...


class ScalarAlgorithm(Protocol):
    """An offline algorithm with a scalar head (reward-model training)."""

    @property
    def roles(self) -> frozenset[Role]: ...
    @property
    def needs(self) -> OfflineNeeds: ...

    def loss(self, scores: Tensor, batch: Any, denominators: Denominators) -> LossOutput:
        """`scores` is `[S]`: the scalar of each sequence's last token."""
        ...


@runtime_checkable
class MeasuringAlgorithm(Protocol):
    """A causal algorithm whose loss needs a figure of the whole step before the first gradient (KTO's KL)."""

    def measured_tokens(self, batch: Any) -> TokenBatch:
        """The sequences to be looked at for it."""
        ...

    def measure(self, outputs: TokenOutputs, batch: Any, denominators: Denominators) -> Tensor:
        """This micro-batch's share `[]`; the shares of all ranks and micro-batches add up to the figure."""
        ...

    def given(self, figure: Tensor) -> CausalAlgorithm:
        """The algorithm with the step's figure `[]` known."""
        ...


@runtime_checkable
class LinearAlgorithm(Protocol):
    """A causal algorithm whose loss is a weighted sum of log-probs, the weights known before the forward pass."""

    def logprob_gradient(self, batch: Any, denominators: Denominators) -> Tensor:
        """d loss / d log-prob of every token, `[N]`, zero off-mask: the head forms its gradients at once."""
        ...


OfflineAlgorithm = CausalAlgorithm | ScalarAlgorithm
