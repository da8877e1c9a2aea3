"""Log-probs whose gradient is known before the forward pass: three products for forward and backward, not four.

A loss that is a weighted sum of log-probs (next-token training) has d loss / d log-prob fixed before the first logit.
So the head's gradients are formed while its logits are there and nothing is computed again in backward. The idea is
that of Liger's fused linear cross-entropy (Hsu et al. 2024, arXiv:2410.10989); the maths is that of logprobs.py.

Where the head is frozen (adapters) the same holds for any loss: a state's gradient is its token's upstream gradient
times what an upstream gradient of 1 would give, and no weight gradient sums over tokens. Two products, not three.
"""

from __future__ import annotations

from typing import Any

import torch
from raylign.trainer.functional.logit_blocks import (
    accumulate_dtype,
    block_of,
    block_size,
    logits_into,
    softmax_by_tiles,
    tempered,
)
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_BLOCK_BYTES = 44 << 20
"""Of logits over the whole vocabulary: enough tokens for good products, and within 64 MB with the softmax at work."""
AGREEMENT = 1e-4
"""How far the loss's real gradient may be from a multiple of the given one, relative to its largest entry."""


def logprobs_of_known_gradient(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    logprob_grad: Tensor,
    *,
    temperature: float,
    block_bytes: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob of `targets[m]` under softmax(hidden[m] @ weight.T / temperature), that distribution's entropy, and
    whether no token is likelier than the target.

    Args:
        hidden: [M, H] states that *predict* the targets (the caller shifts).
        weight: [V, H] of the head, same dtype as hidden.
        targets: [M] int64.
        logprob_grad: [M] d loss / d log-prob, but for one common factor (a loss scale).
        temperature: the sampling temperature, above 0.
        block_bytes: of the logits that exist at once, at least those of one token; None for what suits the device.

    Returns:
        ([M], [M], [M]): float32 (float64 for float64 inputs), entropy in nats; the last is bool. Only the log-probs
        carry gradient; that of a frozen weight or state is not formed. Backward raises RuntimeError when the gradient
        that arrives is no multiple of `logprob_grad`.
    """
    size = block_size(block_bytes, hidden, CPU_BLOCK_BYTES)
    return _KnownGradient.apply(hidden, weight, targets, logprob_grad, temperature, size, False)


def logprobs_of_frozen_head(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float, block_bytes: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for a weight that is not trained, and any loss of the log-probs.

    Only the log-probs carry gradient, and only to `hidden`.
    """
    ones = torch.ones(hidden.shape[0], dtype=accumulate_dtype(hidden), device=hidden.device)
    size = block_size(block_bytes, hidden, CPU_BLOCK_BYTES)
    return _KnownGradient.apply(hidden, weight.detach(), targets, ones, temperature, size, True)


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        logprob_grad: Tensor,
        temperature: float,
        block_bytes: int,
        row_by_row: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`row_by_row`: `logprob_grad` is 1 and the real one comes in backward, a number a token."""
        ctx.row_by_row = row_by_row
        given = logprob_grad.to(accumulate_dtype(hidden))
        logprobs, entropy = torch.empty_like(given), torch.empty_like(given)
        first_choice = torch.empty_like(given, dtype=torch.bool)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        tokens = max(1, min(hidden.shape[0], block_bytes // (weight.shape[0] * hidden.element_size())))
        buffer = hidden.new_empty(tokens * weight.shape[0])
        for chunk in (slice(i, i + tokens) for i in range(0, hidden.shape[0], tokens)):
            logits = logits_into(buffer, hidden[chunk], weight)
            grad = block_of(buffer, hidden[chunk], weight)
            # by index: with gather and scatter_ in its place bfloat16 took another 94 MB
            at = torch.arange(logits.shape[0], device=logits.device), targets[chunk]
            target, upstream = tempered(logits[at], temperature), given[chunk] / temperature
            for part in softmax_by_tiles(logits, temperature):
                log_sum, mean, highest = part.sums()
                logprobs[chunk][part.rows] = target[part.rows] - log_sum
                entropy[chunk][part.rows] = log_sum - mean
                first_choice[chunk][part.rows] = target[part.rows] >= highest
                grad[part.rows] = part.times(-upstream[part.rows])
            grad[at] = (-upstream * logprobs[chunk].expm1()).to(grad.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[chunk])
            if grad_weight is not None:
                grad_weight.addmm_(grad.T, hidden[chunk])
        ctx.save_for_backward(given, grad_hidden, grad_weight)
        ctx.mark_non_differentiable(entropy, first_choice)
        return logprobs, entropy, first_choice

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """What forward formed, times what arrived."""
        given, grad_hidden, grad_weight = ctx.saved_tensors
        if ctx.row_by_row:
            return (grad_hidden * grad_logprobs[:, None]).to(grad_hidden.dtype), *[None] * 6
        factor = _common_factor(grad_logprobs, given)
        if factor != 1:
            for grad in (grad_hidden, grad_weight):
                if grad is not None:
                    grad.mul_(factor)
        return grad_hidden, grad_weight, *[None] * 5


def _common_factor(arrived: Tensor, given: Tensor) -> float:
    """The number that `given` times is `arrived`. Raises RuntimeError when there is none."""
    if not given.any():
        factor, off = 0.0, arrived.double()
    else:
        expected, found = given.double(), arrived.double()
        factor = float(torch.linalg.vecdot(found, expected) / torch.linalg.vecdot(expected, expected))
        off = found - factor * expected
    if not torch.linalg.vector_norm(off) <= AGREEMENT * torch.linalg.vector_norm(arrived.double()):
        raise RuntimeError(
            "the gradient of the log-probs is no multiple of the one that was given before the forward pass: the loss "
            "is not the weighted sum of log-probs that its algorithm says it is"
        )
    return factor
