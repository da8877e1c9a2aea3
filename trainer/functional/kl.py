"""KL divergence from log-probs of sampled tokens, its loss, and its coefficient.

With x = log pi - log pi_ref on a token drawn from pi (Schulman, "Approximating KL Divergence", 2020):
k1 = x, k2 = x^2 / 2, k3 = exp(-x) - 1 + x. k1 and k3 are unbiased; k3 is never negative and, while x is small, varies
less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from raylign.conf.schema import KLController, KLEstimator
from raylign.data.types import TokenBatch
from raylign.trainer.functional.segments import sequence_sum
from torch import Tensor

MAX_LOG_RATIO = 20.0  # exp of it is 5e8: finite in every float format in use
MAX_COEF_STEP = 0.2  # the adaptive coefficient moves at most this fraction a horizon (Ziegler et al. 2019)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator, *, clamp: float = 0.0) -> Tensor:
    """KL estimate of each token, nats, clamped to +-`clamp` (0: not). [N]"""
    x = (logprobs - ref_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    match estimator:
        case KLEstimator.k1:
            kl = x
        case KLEstimator.k2:
            kl = x.square() / 2
        case KLEstimator.k3:
            kl = torch.expm1(-x) + x
    return kl.clamp(-clamp, clamp) if clamp > 0 else kl


def kl_loss(
    logprobs: Tensor, ref_logprobs: Tensor, weight: Tensor, estimator: KLEstimator, *, clamp: float = 0.0
) -> Tensor:
    """KL as a loss term of each token: the estimator's value, the gradient of the true reverse KL. [N]

    Tokens drawn from pi_old estimate KL(pi || ref) with `weight` = pi / pi_old (detached here). The gradient of
    E_old[weight * k] for k1 and k3, weight differentiated too, is E_old[weight * x * grad log pi] (k1 up to a term of
    zero mean), and so is k2's with the weight held. Differentiating k3 alone, without the weight, gives
    (1 - exp(-x)) grad log pi, which is another divergence's gradient; k1 alone gives no signal at all. So every
    estimator gets the one right gradient, written down directly, and its own value.
    """
    kl = kl_estimate(logprobs.detach(), ref_logprobs, estimator, clamp=clamp)
    x = kl_estimate(logprobs.detach(), ref_logprobs, KLEstimator.k1, clamp=clamp)
    held = weight.detach()
    return held * kl + held * x * (logprobs - logprobs.detach())


def sequence_kl(logprobs: Tensor, ref_logprobs: Tensor, tokens: TokenBatch) -> Tensor:
    """Unbiased (k1) KL to the reference of each sequence: its summed log-ratio, nats. [S]"""
    return sequence_sum(logprobs - ref_logprobs, tokens)


@dataclass(frozen=True, slots=True)
class KLState:
    """The KL coefficient and the rule that moves it. Only `coef` changes over a run; it belongs in the checkpoint.

    Raises ValueError on values no rule can work with.
    """

    controller: KLController
    coef: float
    target: float = 0.0  # nats a sequence; adaptive only
    horizon: float = 0.0  # sequences; adaptive only

    def __post_init__(self) -> None:
        if not math.isfinite(self.coef) or self.coef < 0:
            raise ValueError(f"KL coefficient is {self.coef}; it must be a finite number >= 0")
        if self.controller is KLController.adaptive and not (self.coef > 0 and self.target > 0 and self.horizon > 0):
            raise ValueError(
                f"an adaptive KL coefficient needs coef, target and horizon above 0, got coef={self.coef}, "
                f"target={self.target}, horizon={self.horizon}"
            )

    def update(self, mean_kl: float, num_sequences: int) -> Self:
        """The state after a step of `num_sequences` whose mean KL to the reference was `mean_kl` nats a sequence.

        coef *= 1 + clip(mean_kl / target - 1, +-0.2) * num_sequences / horizon (Ziegler et al. 2019, section 2.2). The
        last factor is held at 1, so a horizon shorter than a step cannot turn the coefficient negative.
        Raises ValueError when an adaptive coefficient is given a KL that is not finite.
        """
        if self.controller is KLController.fixed:
            return self
        if not math.isfinite(mean_kl):
            raise ValueError(f"mean KL to the reference is {mean_kl}; the adaptive KL coefficient cannot follow it")
        error = min(max(mean_kl / self.target - 1, -MAX_COEF_STEP), MAX_COEF_STEP)
        return replace(self, coef=self.coef * (1 + error * min(num_sequences / self.horizon, 1.0)))
