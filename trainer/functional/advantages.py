"""Advantages: generalised advantage estimation and the group and REINFORCE baselines.

Per-token tensors are flat `[N]`, zero off-mask; group tensors are `[S]`. Sums run in float64 and come back in the
input's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from raylign.data.types import TokenBatch, ValueEstimates
from raylign.trainer.functional.segments import ResponseLayout, reverse_scan, sequence_ids
from torch import Tensor


def gae(
    rewards: Tensor,
    estimates: ValueEstimates,
    tokens: TokenBatch,
    truncated: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both `[N]` (Schulman et al. 2016, equation 16).

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lambda A_{t+1}, where t + 1 is the next *trained*
    token of the sequence: masked tokens in between carry value and advantage on undecayed. After the last token V is
    0, or `estimates.bootstrap` where `truncated [S]`, because the episode was cut and not over.
    """
    layout = ResponseLayout.of(tokens)
    reward, value = layout.spread(rewards.double()), layout.spread(estimates.values.double())
    next_value = torch.zeros_like(value)
    next_value[:, :-1] = value[:, 1:]
    cut = truncated & (layout.lengths > 0)
    next_value[cut, layout.lengths[cut] - 1] = estimates.bootstrap.double()[cut]
    advantages = layout.flatten(reverse_scan(reward + gamma * next_value - value, gamma * gae_lambda))
    returns = torch.where(tokens.response_mask, advantages + estimates.values.double(), 0)
    return advantages.to(rewards.dtype), returns.to(rewards.dtype)


def discounted_returns(rewards: Tensor, tokens: TokenBatch, *, gamma: float) -> Tensor:
    """Reward-to-go of each trained token over the trained tokens of its sequence. [N]"""
    layout = ResponseLayout.of(tokens)
    return layout.flatten(reverse_scan(layout.spread(rewards.double()), gamma)).to(rewards.dtype)


def broadcast_to_tokens(x: Tensor, tokens: TokenBatch) -> Tensor:
    """A number a sequence `[S]` -> each of its trained tokens `[N]`."""
    return torch.where(tokens.response_mask, x[sequence_ids(tokens)], 0)


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """Figures of the samples that share a prompt, spread back over the sequences."""

    size: Tensor  # [S] float64, members of the sequence's group
    mean: Tensor  # [S] float64
    std: Tensor  # [S] float64, unbiased; 0 for a group of one
    num_single: int  # groups of one: no baseline, so no advantage
    num_zero_variance: int  # groups of two and more whose scores are all equal: nothing to learn from

    @classmethod
    def of(cls, scores: Tensor, group: Tensor) -> GroupStatistics:
        """`scores` and `group` are `[S]`; members of a group need not be neighbours."""
        _, index = torch.unique(group, return_inverse=True)
        num_groups = int(index.max()) + 1 if index.numel() else 0
        x = scores.double()
        zeros = torch.zeros(num_groups, dtype=torch.float64, device=x.device)
        size = zeros.index_add(0, index, torch.ones_like(x))
        mean = zeros.index_add(0, index, x) / size
        squares = zeros.index_add(0, index, (x - mean[index]).square())
        std = (squares / (size - 1).clamp(min=1)).sqrt()
        low = zeros.scatter_reduce(0, index, x, "amin", include_self=False)
        high = zeros.scatter_reduce(0, index, x, "amax", include_self=False)
        return cls(
            size=size[index],
            mean=mean[index],
            std=std[index],
            num_single=int((size == 1).sum()),
            num_zero_variance=int(((low == high) & (size > 1)).sum()),
        )


def group_relative(scores: Tensor, stats: GroupStatistics, *, scale_by_std: bool, eps: float = 1e-6) -> Tensor:
    """Score minus the group's mean, over its standard deviation if asked (GRPO, Shao et al. 2024). [S]

    Exactly 0 in a group of one and where all scores are equal: the float64 mean of equal float32 scores is exact.
    """
    centred = scores.double() - stats.mean
    return (centred / (stats.std + eps) if scale_by_std else centred).to(scores.dtype)


def leave_one_out(scores: Tensor, stats: GroupStatistics) -> Tensor:
    """Score minus the mean of the *other* members (RLOO, Ahmadian et al. 2024): n / (n - 1) (score - mean). [S]"""
    others = (stats.size - 1).clamp(min=1)
    return (stats.size / others * (scores.double() - stats.mean)).to(scores.dtype)
