"""Root-mean-square normalisation that keeps its input and one number a row for backward, not four copies of the input.

Zhang and Sennrich 2019, arXiv:1910.07467, equation 4. Rounds where transformers rounds, so forward agrees bit by bit.
"""

from __future__ import annotations

from typing import Any

import torch
from raylign.trainer.functional.logit_blocks import accumulate_dtype
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension.

    Args:
        x: [..., H], not empty.
        weight: [H], same dtype as x.
        eps: above 0.

    Returns:
        [..., H] in x's dtype. The mean and the division run in float32 (float64 for float64), then x / rms is rounded
        to x's dtype and multiplied by the weight. Carries gradient to x and to a trained weight.
    """
    normed: Tensor = _RMSNorm.apply(x.reshape(-1, x.shape[-1]), weight, eps)
    return normed.view(x.shape)


class _RMSNorm(torch.autograd.Function):
    """x `[M, H]`, weight `[H]` -> `[M, H]`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """With s = 1 / sqrt(mean(x^2) + eps): y = weight * (s x)."""
        wide = x.to(accumulate_dtype(x))
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """With n = s x and g = weight * grad: d x = s (g - n mean(g n)), d weight = sum grad n."""
        x, weight, scale = ctx.saved_tensors
        need_x, need_weight, _ = ctx.needs_input_grad
        normed = x * scale  # in the accumulation dtype, by promotion
        grad_weight = (grad * normed).sum(0).to(weight.dtype) if need_weight else None
        if not need_x:
            return None, grad_weight, None
        inner = (weight * grad).to(normed.dtype)
        along = torch.linalg.vecdot(inner, normed)[:, None] / x.shape[-1]
        return inner.sub_(normed.mul_(along)).mul_(scale).to(x.dtype), grad_weight, None
