"""Masked sums, means and whitening over flat `[N]` tensors. Every mean states what it divides by."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of `x` where `mask`; what is off-mask is never read, so a NaN there does no harm. [] of x's dtype."""
    return torch.where(mask, x, 0).sum()


def masked_mean(x: Tensor, mask: Tensor, denominator: float) -> Tensor:
    """`masked_sum / denominator`, the denominator being the *global* count, of which this mask may be a part. []"""
    return masked_sum(x, mask) / denominator


def masked_moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance of the entries of `x` where `mask`, in float64. ([], []); (0, 0) for none."""
    values = x[mask].double()
    if values.numel() == 0:
        zero = torch.zeros((), dtype=torch.float64, device=x.device)
        return zero, zero
    return values.mean(), values.var(correction=0)


def masked_whiten(x: Tensor, mask: Tensor, *, eps: float = 1e-8) -> Tensor:
    """`(x - mean) / sqrt(variance + eps)` over the entries where `mask`, zero elsewhere. [N] of x's dtype.

    Population variance, as in OpenRLHF: a single entry becomes 0 instead of dividing by zero. Call it on the whole
    step, never on one rank's part.
    """
    mean, variance = masked_moments(x, mask)
    return torch.where(mask, (x.double() - mean) * (variance + eps).rsqrt(), 0).to(x.dtype)


def explained_variance(predicted: Tensor, target: Tensor, mask: Tensor) -> float:
    """`1 - var(target - predicted) / var(target)` where `mask`: 1 is perfect, 0 no better than a constant.

    nan when the target is constant: there is nothing to explain.
    """
    _, total = masked_moments(target, mask)
    _, residual = masked_moments(target - predicted, mask)
    return float(1 - residual / total) if total > 0 else float("nan")
