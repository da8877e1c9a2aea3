"""The policy loss that every online algorithm shares: ratio, objective, corrections, and what they are averaged over.

Pure. `[N]` tensors are flat over all tokens (data/types.py).
"""

from __future__ import annotations

import torch
from raylign.conf.schema import ImportanceMode, LossAggregation, PolicyObjectiveKind, RatioLevel
from raylign.data.types import Denominators, PolicyExperience, TokenBatch, TokenOutputs
from raylign.trainer.algorithms.base import LossOutput, MetricSum
from raylign.trainer.algorithms.online import OnlineConfig
from raylign.trainer.functional.kl import kl_loss
from raylign.trainer.functional.losses import (
    cispo_loss,
    clipped_policy_loss,
    log_ratio,
    masked_importance_weights,
    truncated_importance_weights,
)
from raylign.trainer.functional.masked import masked_mean, masked_sum
from raylign.trainer.functional.segments import sequence_ids, sequence_sum, trained_tokens
from torch import Tensor


def global_mean(config: OnlineConfig, loss: Tensor, tokens: TokenBatch, denominators: Denominators) -> Tensor:
    """This batch's share of the global mean of a token loss `[N]`: summed over ranks and micro-batches, the mean. []"""
    match config.loss_aggregation:
        case LossAggregation.token_mean:
            return masked_mean(loss, tokens.response_mask, denominators.tokens)
        case LossAggregation.constant_length:
            return masked_mean(loss / config.constant_length, tokens.response_mask, denominators.sequences)
        case LossAggregation.sequence_mean:
            lengths = trained_tokens(tokens).clamp(min=1)[sequence_ids(tokens)]
            return masked_mean(loss / lengths, tokens.response_mask, denominators.sequences)


def policy_loss(
    config: OnlineConfig,
    outputs: TokenOutputs,
    batch: PolicyExperience,
    denominators: Denominators,
    *,
    kl_coef: float,
) -> LossOutput:
    """Clipped surrogate, minus the entropy bonus, plus KL if it belongs here; see the parts for their sources."""
    mask = batch.tokens.response_mask
    own = batch.old_logprobs is None
    old_logprobs = outputs.logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
    log_r = log_ratio(outputs.logprobs, old_logprobs)
    ratio = (_sequence_mean(log_r, batch.tokens) if config.ratio_level is RatioLevel.sequence else log_r).exp()
    match config.objective:
        case PolicyObjectiveKind.clip:
            loss, clipped = clipped_policy_loss(ratio, batch.advantages, config.clip_range())
        case PolicyObjectiveKind.cispo:
            loss, clipped = cispo_loss(outputs.logprobs, ratio, batch.advantages, config.clip_range())
    correction = _importance_weights(config, old_logprobs, batch)
    loss = loss * correction
    if config.entropy_coef > 0:
        loss = loss - config.entropy_coef * outputs.entropy
    count = mask.sum().float()
    terms = {
        "approx_kl": torch.expm1(log_r.detach()) - log_r.detach(),  # k3 of KL(old || now)
        "entropy": outputs.entropy.detach(),
        "clip_fraction": clipped.float(),
        "ratio": ratio.detach(),
        "importance_weight": correction,
        "importance_masked": (correction == 0).float(),
    }
    if batch.ref_logprobs is not None and config.kl_in_loss:
        weight = log_r.exp() * correction
        weight = weight.clamp(max=config.importance_cap) if config.importance_cap > 0 else weight
        kl = kl_loss(outputs.logprobs, batch.ref_logprobs, weight, config.kl_estimator, clamp=config.kl_clamp)
        loss = loss + kl_coef * kl
        terms["kl_loss"] = kl.detach()
    total = global_mean(config, loss, batch.tokens, denominators)
    metrics = {name: MetricSum(masked_sum(term, mask).float(), count) for name, term in terms.items()}
    if not own:
        return LossOutput(total, metrics)
    measured, maxima = _measured_in_update(old_logprobs, batch)
    return LossOutput(total, metrics | measured, maxima)


def _importance_weights(config: OnlineConfig, old_logprobs: Tensor, batch: PolicyExperience) -> Tensor:
    """What each token's loss is multiplied by for having been sampled by the engine, perhaps by older weights. [N]"""
    cap, floor = config.importance_cap, config.importance_floor
    if cap <= 0:
        return torch.ones_like(old_logprobs)
    if config.importance_mode is ImportanceMode.truncate:
        return truncated_importance_weights(old_logprobs, batch.rollout_logprobs, cap)
    log_weights = log_ratio(old_logprobs, batch.rollout_logprobs).detach()
    if config.importance_mode is ImportanceMode.mask_tokens:
        return masked_importance_weights(log_weights, log_weights, floor, cap)
    return masked_importance_weights(log_weights, _sequence_mean(log_weights, batch.tokens), floor, cap)


def _sequence_mean(x: Tensor, tokens: TokenBatch) -> Tensor:
    """Each token's entry is the mean of `x` over the trained tokens of its sequence. [N]"""
    return (sequence_sum(x, tokens) / trained_tokens(tokens).clamp(min=1))[sequence_ids(tokens)]


def _measured_in_update(
    old_logprobs: Tensor, batch: PolicyExperience
) -> tuple[dict[str, MetricSum], dict[str, Tensor]]:
    """What a pass before the update would have measured: KL to the reference, difference from the engine.

    Names, units and values are those of `reference_metrics` and data/experience.py. Returns sums and maxima.
    """
    mask = batch.tokens.response_mask
    gap = torch.where(mask, (old_logprobs - batch.rollout_logprobs).abs(), 0).float()
    sums = {"rollout/logprob_gap": MetricSum(gap.sum(), mask.sum().float())}
    if batch.ref_logprobs is not None:
        sequences = (trained_tokens(batch.tokens) > 0).sum().float()
        kl = sequence_sum(torch.where(mask, old_logprobs - batch.ref_logprobs, 0), batch.tokens).float()
        sums |= {"kl": MetricSum(kl.sum(), sequences), "kl_square": MetricSum(kl.square().sum(), sequences)}
    return sums, {"rollout/logprob_gap_max": gap.max()}
