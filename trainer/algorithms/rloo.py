"""RLOO: REINFORCE with the other samples' mean as baseline (Ahmadian et al. 2024, "Back to Basics")."""

from __future__ import annotations

from dataclasses import dataclass

from raylign.data.types import Denominators, PolicyExperience, ScoredBatch, TokenOutputs
from raylign.trainer.algorithms.base import AdvantageEstimate, LossOutput, Role
from raylign.trainer.algorithms.online import (
    OnlineConfig,
    group_metrics,
    penalised_scores,
    reference_metrics,
)
from raylign.trainer.algorithms.policy_loss import policy_loss
from raylign.trainer.functional.advantages import GroupStatistics, broadcast_to_tokens, leave_one_out
from raylign.trainer.functional.masked import masked_whiten


@dataclass(kw_only=True)
class RLOOConfig(OnlineConfig):
    """RLOO: leave-one-out baseline over sequence rewards that include the KL."""

    name: str = "rloo"
    whiten: bool = False
    """Advantages to mean 0 and variance 1 over the step's tokens."""

    @property
    def min_samples_per_prompt(self) -> int:
        """A group of one has no advantage."""
        return 2


@dataclass(frozen=True, slots=True)
class RLOO:
    """The algorithm; an OnlineAlgorithm."""

    config: RLOOConfig

    @property
    def roles(self) -> frozenset[Role]:
        """No critic."""
        return self.config.online_roles()

    def estimate(self, batch: ScoredBatch, *, kl_coef: float) -> AdvantageEstimate:
        """The same advantage on every token of a response. Raises ValueError when a score is not finite."""
        scores = penalised_scores(self.config, batch, kl_coef)
        stats = GroupStatistics.of(scores, batch.group)
        advantages = broadcast_to_tokens(leave_one_out(scores, stats), batch.tokens)
        if self.config.whiten:
            advantages = masked_whiten(advantages, batch.tokens.response_mask)
        return AdvantageEstimate(advantages, None, reference_metrics(batch) | group_metrics(batch))

    def policy_loss(
        self, outputs: TokenOutputs, batch: PolicyExperience, denominators: Denominators, *, kl_coef: float
    ) -> LossOutput:
        """The shared clipped loss."""
        return policy_loss(self.config, outputs, batch, denominators, kl_coef=kl_coef)
