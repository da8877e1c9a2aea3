"""Losses of one token or one pair, before any mean: the caller weighs and sums them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from raylign.trainer.functional.kl import MAX_LOG_RATIO
from raylign.trainer.functional.preferences import smoothed_sigmoid_loss
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ClipRange:
    """How far a policy ratio may move: within [1 - low, 1 + high]; `dual` caps it where the advantage is negative."""

    low: float
    high: float
    dual: float = 0.0  # > 1, or 0: off


def log_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """`logprobs - old_logprobs` clamped to +-20, so that its exp is finite. [N]"""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def clipped_policy_loss(ratio: Tensor, advantages: Tensor, clip: ClipRange) -> tuple[Tensor, Tensor]:
    """PPO's loss and where clipping stopped its gradient. ([N], [N] bool)

    max(-A ratio, -A clip(ratio, 1 - low, 1 + high)) (Schulman et al. 2017); where A < 0, at most -A dual (dual clip,
    Ye et al. 2020).
    """
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip.low, 1 + clip.high)
    loss, clipped = torch.maximum(plain, bounded), bounded > plain
    if clip.dual > 0:
        ceiling = -advantages * clip.dual
        over = (advantages < 0) & (loss > ceiling)
        loss, clipped = torch.where(over, ceiling, loss), clipped | over
    return loss, clipped


def truncated_importance_weights(old_logprobs: Tensor, rollout_logprobs: Tensor, cap: float) -> Tensor:
    """min(pi_old / pi_rollout, cap): what trainer and engine disagree on, bounded; no gradient. [N]"""
    return log_ratio(old_logprobs, rollout_logprobs).exp().clamp(max=cap).detach()


def masked_importance_weights(log_weights: Tensor, judged: Tensor, floor: float, cap: float) -> Tensor:
    """exp(log_weights), at most `cap`, where floor <= exp(judged) <= cap; 0 elsewhere; no gradient. [N]

    `judged` is each token's own log-weight (IcePop), or the mean over its response (sequence masks).
    """
    inside = (judged >= math.log(floor) if floor > 0 else torch.ones_like(judged, dtype=torch.bool)) & (
        judged <= math.log(cap)
    )
    return torch.where(inside, log_weights.exp().clamp(max=cap), 0).detach()


def cispo_loss(logprobs: Tensor, ratio: Tensor, advantages: Tensor, clip: ClipRange) -> tuple[Tensor, Tensor]:
    """-A stop(clip(ratio, 1 - low, 1 + high)) log pi, and where the ratio was clipped. ([N], [N] bool)

    No token loses its gradient; the clip bounds its weight (CISPO, MiniMax-M1, arXiv:2506.13585).
    """
    weight = ratio.detach().clamp(1 - clip.low, 1 + clip.high)
    return -advantages * weight * logprobs, weight != ratio.detach()


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """0.5 max((V - R)^2, (V_clipped - R)^2) with V within `clip` of the old value, and where that bit. ([N], [N] bool)

    `clip` is in value units; 0 turns it off.
    """
    plain = (values - returns).square()
    if clip <= 0:
        return plain / 2, torch.zeros_like(plain, dtype=torch.bool)
    bounded = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    return torch.maximum(plain, bounded) / 2, bounded > plain


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, margin: Tensor, *, label_smoothing: float = 0.0, centering_coef: float
) -> Tensor:
    """-(1 - e) log sigmoid(gap) - e log sigmoid(-gap) + centering_coef (chosen + rejected)^2 of each pair. [P]

    gap = chosen - rejected - margin; e = `label_smoothing`, the probability that a choice is wrong. The margin is Llama
    2's (Touvron et al. 2023, equation 2); the centring term keeps scores near 0 (Eisenstein et al. 2023), which the
    difference alone leaves free to drift.
    """
    loss = smoothed_sigmoid_loss(chosen - rejected - margin, label_smoothing)
    return loss + centering_coef * (chosen + rejected).square() if centering_coef > 0 else loss
