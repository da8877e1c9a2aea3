"""The generalised Jensen-Shannon divergence of teacher and policy, from the log-probs of sampled tokens alone.

With p the teacher's and q the policy's distribution of the next token, m = beta p + (1 - beta) q, the divergence is
D = [beta KL(p || m) + (1 - beta) KL(q || m)] / (beta (1 - beta)) (Agarwal et al. 2024, GKD, arXiv:2306.13649,
equation 1, there without the divisor). The divisor makes the ends of beta what they are called: KL(q || p), reverse
KL, at 1 and KL(p || q), forward KL, at 0. D is an f-divergence: with r = p / q it is the mean of f(r) over tokens drawn
from q, so its gradient is the mean of (f(r) - r f'(r)) grad log q over them. Both depend on r at the drawn token only,
so no [tokens, vocabulary] tensor is ever needed; what is paid is variance.

All are elementwise over `log_r` = log p - log q of drawn tokens, any shape, nats; the result has its dtype.
"""

from __future__ import annotations

import math

import torch
from raylign.trainer.functional.kl import MAX_LOG_RATIO
from torch import Tensor


def divergence_signal(log_r: Tensor, beta: float) -> Tensor:
    """What a drawn token's log-prob is pushed up by to lower D: r f'(r) - f(r), up to a term of zero mean.

    log(beta r + 1 - beta) / beta; at beta = 1 log r (Lu et al. 2025, On-Policy Distillation, Thinking Machines), at
    beta = 0 r - 1. Never below log(1 - beta) / beta: with beta below 1 a token that the teacher rules out costs no more
    than that.
    """
    log_r = log_r.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if beta == 0:
        return log_r.expm1()
    return _log_mixture(log_r, beta) / beta


def divergence_estimate(log_r: Tensor, beta: float) -> Tensor:
    """D's unbiased estimate from a drawn token, never negative: f(r) with f(1) = f'(1) = 0.

    At beta = 1 r - 1 - log r (k3 of kl.py), at beta = 0 r log r - r + 1.
    """
    log_r = log_r.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if beta == 1:
        return log_r.expm1() - log_r
    if beta == 0:
        return log_r.exp() * log_r - log_r.expm1()
    log_m = _log_mixture(log_r, beta)
    return (beta * log_r.exp() * (log_r - log_m) - (1 - beta) * log_m) / (beta * (1 - beta))


def _log_mixture(log_r: Tensor, beta: float) -> Tensor:
    """log(m / q) = log(beta r + 1 - beta)."""
    if beta == 1:
        return log_r
    return torch.logaddexp(log_r + math.log(beta), torch.full_like(log_r, math.log1p(-beta)))
