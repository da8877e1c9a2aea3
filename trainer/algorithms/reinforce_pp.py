"""REINFORCE++: reward-to-go with a per-token KL price, whitened over the whole step (Hu 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from raylign.data.types import Denominators, PolicyExperience, ScoredBatch, TokenOutputs
from raylign.trainer.algorithms.base import AdvantageEstimate, LossOutput, Role
from raylign.trainer.algorithms.online import (
    OnlineConfig,
    group_metrics,
    kl_penalty,
    range_problems,
    reference_metrics,
    require_finite_scores,
)
from raylign.trainer.algorithms.policy_loss import policy_loss
from raylign.trainer.functional.advantages import GroupStatistics, discounted_returns, group_relative
from raylign.trainer.functional.masked import masked_whiten
from raylign.trainer.functional.rewards import token_rewards


@dataclass(kw_only=True)
class ReinforcePPConfig(OnlineConfig):
    """REINFORCE++: no critic, whitening over the step instead of a baseline for each prompt."""

    name: str = "reinforce_pp"
    gamma: float = 1.0
    """Discount a token."""
    group_baseline: bool = False
    """Subtract the mean score of the prompt's samples first (the paper's -Baseline form)."""
    whiten: bool = True
    """Advantages to mean 0 and variance 1 over the step's tokens."""

    def check(self) -> list[str]:
        """Every problem of these values, as sentences."""
        own = range_problems(at_least_one={}, not_negative={}, unit={"gamma": self.gamma})
        return super().check() + own

    @property
    def min_samples_per_prompt(self) -> int:
        """With the group's baseline a group of one has no advantage."""
        return 2 if self.group_baseline else 1


@dataclass(frozen=True, slots=True)
class ReinforcePP:
    """The algorithm; an OnlineAlgorithm."""

    config: ReinforcePPConfig

    @property
    def roles(self) -> frozenset[Role]:
        """No critic."""
        return self.config.online_roles()

    def estimate(self, batch: ScoredBatch, *, kl_coef: float) -> AdvantageEstimate:
        """Whitened reward-to-go. Raises ValueError when a score is not finite."""
        require_finite_scores(batch)
        scores = batch.scores
        if self.config.group_baseline:
            scores = group_relative(scores, GroupStatistics.of(scores, batch.group), scale_by_std=False)
        rewards = token_rewards(scores, batch.tokens, kl_penalty(self.config, batch, kl_coef), batch.early)
        advantages = discounted_returns(rewards, batch.tokens, gamma=self.config.gamma)
        if self.config.whiten:
            advantages = masked_whiten(advantages, batch.tokens.response_mask)
        return AdvantageEstimate(advantages, None, reference_metrics(batch) | group_metrics(batch))

    def policy_loss(
        self, outputs: TokenOutputs, batch: PolicyExperience, denominators: Denominators, *, kl_coef: float
    ) -> LossOutput:
        """The shared clipped loss."""
        return policy_loss(self.config, outputs, batch, denominators, kl_coef=kl_coef)
