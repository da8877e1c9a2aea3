"""GRPO: the group's mean is the baseline, no critic (Shao et al. 2024, "DeepSeekMath", section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

from raylign.conf.schema import KLEstimator
from raylign.data.types import Denominators, PolicyExperience, ScoredBatch, TokenOutputs
from raylign.trainer.algorithms.base import AdvantageEstimate, LossOutput, Role
from raylign.trainer.algorithms.online import (
    OnlineConfig,
    group_metrics,
    penalised_scores,
    reference_metrics,
)
from raylign.trainer.algorithms.policy_loss import policy_loss
from raylign.trainer.functional.advantages import GroupStatistics, broadcast_to_tokens, group_relative


@dataclass(kw_only=True)
class GRPOConfig(OnlineConfig):
    """GRPO: advantages relative to the group, KL in the loss."""

    name: str = "grpo"
    kl_in_loss: bool = True
    """True: KL is a term of the policy loss; False: it is subtracted from the reward."""
    kl_estimator: KLEstimator = KLEstimator.k3
    """Estimator of the KL of a token."""
    scale_by_std: bool = True
    """Divide by the group's standard deviation; off weighs prompts by how much their answers differ (Dr. GRPO)."""

    @property
    def min_samples_per_prompt(self) -> int:
        """A group of one has no advantage."""
        return 2


@dataclass(frozen=True, slots=True)
class GRPO:
    """The algorithm; an OnlineAlgorithm."""

    config: GRPOConfig

    @property
    def roles(self) -> frozenset[Role]:
        """No critic."""
        return self.config.online_roles()

    def estimate(self, batch: ScoredBatch, *, kl_coef: float) -> AdvantageEstimate:
        """The same advantage on every token of a response. Raises ValueError when a score is not finite."""
        scores = penalised_scores(self.config, batch, kl_coef)
        stats = GroupStatistics.of(scores, batch.group)
        relative = group_relative(scores, stats, scale_by_std=self.config.scale_by_std)
        metrics = reference_metrics(batch) | group_metrics(batch)
        return AdvantageEstimate(broadcast_to_tokens(relative, batch.tokens), None, metrics)

    def policy_loss(
        self, outputs: TokenOutputs, batch: PolicyExperience, denominators: Denominators, *, kl_coef: float
    ) -> LossOutput:
        """The shared clipped loss."""
        return policy_loss(self.config, outputs, batch, denominators, kl_coef=kl_coef)
