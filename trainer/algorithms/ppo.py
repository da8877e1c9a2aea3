"""PPO with a learned critic (Schulman et al. 2017; for language models Ziegler et al. 2019, Ouyang et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raylign.data.types import CriticExperience, Denominators, PolicyExperience, ScoredBatch, TokenOutputs
from raylign.trainer.algorithms.base import AdvantageEstimate, LossOutput, MetricSum, Role
from raylign.trainer.algorithms.online import (
    OnlineConfig,
    kl_penalty,
    range_problems,
    reference_metrics,
    require_finite_scores,
)
from raylign.trainer.algorithms.policy_loss import policy_loss
from raylign.trainer.functional.advantages import gae
from raylign.trainer.functional.losses import clipped_value_loss
from raylign.trainer.functional.masked import explained_variance, masked_mean, masked_moments, masked_sum, masked_whiten
from raylign.trainer.functional.rewards import token_rewards
from torch import Tensor


@dataclass(kw_only=True)
class PPOConfig(OnlineConfig):
    """PPO: advantages by GAE from a critic, KL in the reward."""

    name: str = "ppo"
    gamma: float = 1.0
    """Discount a token."""
    gae_lambda: float = 0.95
    """GAE's lambda: 0 trusts the critic, 1 the sampled return."""
    value_clip: float = 0.5
    """The critic moves at most this far a step, value units (compare `critic/return_std`); 0 turns it off."""
    whiten: bool = True
    """Advantages to mean 0 and variance 1 over the step's tokens."""

    def check(self) -> list[str]:
        """Every problem of these values, as sentences."""
        own = range_problems(
            at_least_one={},
            not_negative={"value_clip": self.value_clip},
            unit={"gamma": self.gamma, "gae_lambda": self.gae_lambda},
        )
        return super().check() + own


@dataclass(frozen=True, slots=True)
class PPO:
    """The algorithm; an ActorCriticAlgorithm."""

    config: PPOConfig

    @property
    def roles(self) -> frozenset[Role]:
        """A critic besides the usual ones."""
        return self.config.online_roles() | {Role.CRITIC}

    def estimate(self, batch: ScoredBatch, *, kl_coef: float) -> AdvantageEstimate:
        """GAE over token rewards. Raises ValueError without value estimates, or when a score is not finite."""
        if batch.estimates is None:
            raise ValueError("PPO needs value estimates, and the batch has none: the critic did not run")
        require_finite_scores(batch)
        mask = batch.tokens.response_mask
        rewards = token_rewards(batch.scores, batch.tokens, kl_penalty(self.config, batch, kl_coef), batch.early)
        advantages, returns = gae(
            rewards,
            batch.estimates,
            batch.tokens,
            batch.truncated,
            gamma=self.config.gamma,
            gae_lambda=self.config.gae_lambda,
        )
        mean_return, return_variance = masked_moments(returns, mask)
        metrics = reference_metrics(batch) | {
            "critic/return_mean": float(mean_return),
            "critic/return_std": float(return_variance.sqrt()),
            "critic/value_mean": float(masked_moments(batch.estimates.values, mask)[0]),
        }
        explained = explained_variance(batch.estimates.values, returns, mask)
        if not math.isnan(explained):
            metrics["critic/explained_variance"] = explained
        if self.config.whiten:
            advantages = masked_whiten(advantages, mask)
        return AdvantageEstimate(advantages, returns, metrics)

    def policy_loss(
        self, outputs: TokenOutputs, batch: PolicyExperience, denominators: Denominators, *, kl_coef: float
    ) -> LossOutput:
        """The shared clipped loss."""
        return policy_loss(self.config, outputs, batch, denominators, kl_coef=kl_coef)

    def value_loss(self, values: Tensor, batch: CriticExperience, denominators: Denominators) -> LossOutput:
        """Clipped squared error, a mean over trained tokens."""
        mask = batch.tokens.response_mask
        loss, clipped = clipped_value_loss(values, batch.old_values, batch.returns, self.config.value_clip)
        count = mask.sum().float()
        metrics = {
            "clip_fraction": MetricSum(masked_sum(clipped.float(), mask), count),
            "error": MetricSum(masked_sum((values.detach() - batch.returns).abs(), mask).float(), count),
        }
        return LossOutput(masked_mean(loss, mask, denominators.tokens), metrics)
