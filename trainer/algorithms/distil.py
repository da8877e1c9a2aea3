"""On-policy distillation: the policy samples, and a frozen teacher says of every token how likely it had been.

Agarwal et al. 2024, GKD (arXiv:2306.13649), on samples of the policy alone; its reverse KL as a token's advantage is Lu
et al. 2025 (Thinking Machines, On-Policy Distillation), with all later tokens Gu et al. 2024, MiniLLM
(arXiv:2306.08543). The teacher is the reference role: `reference.model`, or the policy's start under another prompt
(the rows' `teacher_prompt`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from raylign.conf.schema import KLController
from raylign.data.types import Denominators, PolicyExperience, ScoredBatch, TokenBatch, TokenOutputs
from raylign.trainer.algorithms.base import AdvantageEstimate, LossOutput, Role
from raylign.trainer.algorithms.online import (
    OnlineConfig,
    group_metrics,
    range_problems,
    reference_metrics,
    require_finite_scores,
)
from raylign.trainer.algorithms.policy_loss import policy_loss
from raylign.trainer.functional.advantages import (
    GroupStatistics,
    broadcast_to_tokens,
    discounted_returns,
    group_relative,
)
from raylign.trainer.functional.distillation import divergence_estimate, divergence_signal
from torch import Tensor


@dataclass(kw_only=True)
class DistilConfig(OnlineConfig):
    """Distillation: kl_coef is the weight of what the teacher says, and rewards are measured only."""

    name: str = "distil"
    kl_coef: float = 1.0
    """Weight of the teacher's signal; above 0."""
    beta: float = 1.0
    """The divergence: 1 reverse KL (keeps to what the teacher finds likely), 0 forward KL (covers all that it does),
    between them generalised Jensen-Shannon."""
    discount: float = 0.0
    """How much of the divergence of later tokens a token answers for, a token on: 0 only its own, 1 all of it."""
    reward_coef: float = 0.0
    """Weight of the reward, less its group's mean, beside the teacher; 0: rewards are measured only."""

    @property
    def teacher_prompts(self) -> bool:
        """The rows' `teacher_prompt` is what the reference reads."""
        return True

    @property
    def needs_reward(self) -> bool:
        """The teacher is the signal."""
        return self.reward_coef > 0

    @property
    def min_samples_per_prompt(self) -> int:
        """With a reward, a group of one has no advantage."""
        return 2 if self.reward_coef > 0 else 1

    def _needs_pass_before(self, sequences_per_step: int) -> str:
        """The signal is the difference of two models' log-probs."""
        return "the teacher is compared with the policy"

    def check(self) -> list[str]:
        """Every problem of these values, as sentences."""
        problems = super().check()
        unit = {"beta": self.beta, "discount": self.discount}
        problems += range_problems(at_least_one={}, not_negative={"reward_coef": self.reward_coef}, unit=unit)
        if self.kl_coef == 0:
            problems.append("algorithm.kl_coef is 0, so the teacher would teach nothing; set it to 1")
        if self.kl_in_loss:
            problems.append(
                "algorithm.kl_in_loss is true, but the teacher's signal is each token's advantage; set it to false"
            )
        if self.kl_controller is not KLController.fixed:
            problems.append(
                f"algorithm.kl_controller is {self.kl_controller.value}, but kl_coef is the weight of the teacher; set "
                "it to fixed"
            )
        return problems


@dataclass(frozen=True, slots=True)
class Distil:
    """The algorithm; an OnlineAlgorithm."""

    config: DistilConfig

    @property
    def roles(self) -> frozenset[Role]:
        """No critic; the reference is the teacher."""
        return self.config.online_roles()

    def estimate(self, batch: ScoredBatch, *, kl_coef: float) -> AdvantageEstimate:
        """Each token's signal, of its own distribution and of later ones. Raises ValueError without the teacher's
        log-probs, and when a score is not finite.
        """
        require_finite_scores(batch)
        if batch.ref_logprobs is None:
            raise ValueError("distillation needs the teacher's log-probs, and this step has none")
        config, mask = self.config, batch.tokens.response_mask
        log_r = torch.where(mask, batch.ref_logprobs - batch.logprobs, 0)
        divergence = torch.where(mask, divergence_estimate(log_r, config.beta), 0)
        advantages = kl_coef * self._signal(log_r, divergence, batch.tokens)
        metrics = reference_metrics(batch) | group_metrics(batch)
        if config.reward_coef > 0:
            relative = group_relative(batch.scores, GroupStatistics.of(batch.scores, batch.group), scale_by_std=False)
            advantages = advantages + config.reward_coef * broadcast_to_tokens(relative, batch.tokens)
        return AdvantageEstimate(advantages, None, metrics | _metrics(batch, divergence))

    def policy_loss(
        self, outputs: TokenOutputs, batch: PolicyExperience, denominators: Denominators, *, kl_coef: float
    ) -> LossOutput:
        """The shared clipped loss."""
        return policy_loss(self.config, outputs, batch, denominators, kl_coef=kl_coef)

    def _signal(self, log_r: Tensor, divergence: Tensor, tokens: TokenBatch) -> Tensor:
        """`[N]`, zero off-mask: the token's own, less the discounted divergence of the tokens after it."""
        own = divergence_signal(log_r, self.config.beta)
        clamp = self.config.kl_clamp
        own = torch.where(tokens.response_mask, own.clamp(-clamp, clamp) if clamp > 0 else own, 0)
        if self.config.discount == 0:
            return own
        kept = divergence.clamp(max=clamp) if clamp > 0 else divergence
        return own - (discounted_returns(kept, tokens, gamma=self.config.discount) - kept)


def _metrics(batch: ScoredBatch, divergence: Tensor) -> dict[str, float]:
    """Means over the step's answer tokens."""
    mask, teacher = batch.tokens.response_mask, batch.ref_logprobs
    assert teacher is not None
    return {
        "distil/divergence": float(divergence[mask].double().mean()),
        "distil/teacher_logprob": float(teacher[mask].double().mean()),
    }
