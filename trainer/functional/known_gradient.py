"""Log-probs whose gradient is known before the forward pass: three products for forward and backward, not four.

A loss that is a weighted sum of log-probs (next-token training) has d loss / d log-prob fixed before the first logit.
So the head's gradients are formed while its logits are there and nothing is computed again in backward. The idea is
that of Liger's fused linear cross-entropy (Hsu et al. 2024, arXiv:2410.10989); the maths is that of logprobs.py.

Where the head is frozen (adapters) the same holds for any loss: a state's gradient is its token's upstream gradient
times what an upstream gradient of 1 would give, and no weight gradient sums over tokens. Two products, not three.

The logits of some tokens over the whole vocabulary exist at once, so tokens are the outer loop here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.functional.logprobs import accumulate_dtype

DEFAULT_LOGITS_BYTES = 48 << 20
"""Of logits at once: enough tokens to make the products large, few enough to be little beside the weight's gradient."""
SOFTMAX_TILE = 1 << 21
"""Logits that the softmax looks at together: 8 MB in float32, so that its passes stay in the cache."""
AGREEMENT = 1e-4
"""How far the loss's real gradient may be from a multiple of the given one, relative to its largest entry."""


def logprobs_of_known_gradient(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    logprob_grad: Tensor,
    *,
    temperature: float,
    logits_bytes: int = DEFAULT_LOGITS_BYTES,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob of `targets[m]` under softmax(hidden[m] @ weight.T / temperature), that distribution's entropy, and
    whether no token is likelier than the target.

    Args:
        hidden: [M, H] states that *predict* the targets (the caller shifts).
        weight: [V, H] of the head, same dtype as hidden.
        targets: [M] int64.
        logprob_grad: [M] d loss / d log-prob, but for one common factor (a loss scale).
        temperature: the sampling temperature, above 0.
        logits_bytes: of the logits that exist at once; at least those of one token.

    Returns:
        ([M], [M], [M]): float32 (float64 for float64 inputs), entropy in nats; the last is bool. Only the log-probs
        carry gradient; that of a frozen weight or state is not formed. Backward raises RuntimeError when the gradient
        that arrives is no multiple of `logprob_grad`.
    """
    return _KnownGradient.apply(hidden, weight, targets, logprob_grad, temperature, logits_bytes, False)


def logprobs_of_frozen_head(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float, logits_bytes: int = DEFAULT_LOGITS_BYTES
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for a weight that is not trained, and any loss of the log-probs.

    Only the log-probs carry gradient, and only to `hidden`.
    """
    ones = torch.ones(hidden.shape[0], dtype=accumulate_dtype(hidden), device=hidden.device)
    return _KnownGradient.apply(hidden, weight.detach(), targets, ones, temperature, logits_bytes, True)


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        logprob_grad: Tensor,
        temperature: float,
        logits_bytes: int,
        row_by_row: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`row_by_row`: `logprob_grad` is 1 and the real one comes in backward, a number a token."""
        ctx.row_by_row = row_by_row
        num_tokens, vocab_size = hidden.shape[0], weight.shape[0]
        given = logprob_grad.to(accumulate_dtype(hidden))
        logprobs, entropy = torch.empty_like(given), torch.empty_like(given)
        first_choice = torch.empty_like(given, dtype=torch.bool)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        chunk = max(1, min(num_tokens, logits_bytes // (vocab_size * hidden.element_size())))
        buffer = hidden.new_empty(chunk, vocab_size)
        for start in range(0, num_tokens, chunk):
            rows = slice(start, min(start + chunk, num_tokens))
            grad = buffer[: rows.stop - start]
            logits = _logits_into(grad, hidden[rows], weight)
            logprobs[rows], entropy[rows], first_choice[rows] = _softmax_into(
                grad, logits, targets[rows], given[rows], temperature
            )
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight.addmm_(grad.T, hidden[rows])
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


def _logits_into(buffer: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """Logits `[C, V]`: in `buffer` where the product rounds to its dtype anyway, else with the accumulator's bits."""
    if hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)  # CUDA only
    return torch.mm(hidden, weight.T, out=buffer)


def _softmax_into(
    grad: Tensor, logits: Tensor, targets: Tensor, upstream: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss's gradient with respect to `logits` `[C, V]` into `grad`, which may be the same memory.

    Returns log-probs, entropies and whether no token is likelier, `[C]` each. Tile by tile in the accumulation dtype:
    with z the tempered logits, p = softmax(z) and L = logsumexp(z), the log-prob is z_y - L, the entropy L - sum p z,
    the gradient upstream / temperature * ([j = y] - p_j). L is read off the likeliest token, z_max - log p_max, where p
    is at least 1/V and so never underflows.
    """
    logprobs, entropy = torch.empty_like(upstream), torch.empty_like(upstream)
    first_choice = torch.empty_like(upstream, dtype=torch.bool)
    step = max(1, SOFTMAX_TILE // logits.shape[1])
    for start in range(0, logits.shape[0], step):
        rows = slice(start, start + step)
        z = logits[rows].to(upstream.dtype)
        if temperature != 1:
            z = z / temperature
        p = z.softmax(-1)
        highest, at = z.amax(-1), targets[rows, None]
        log_sum = highest - p.amax(-1).log()
        target = z.gather(1, at)[:, 0]
        logprobs[rows], first_choice[rows] = target - log_sum, target >= highest
        entropy[rows] = log_sum - torch.linalg.vecdot(p, z)
        tempered = upstream[rows, None] / temperature
        grad[rows] = p.mul_(-tempered).scatter_add_(1, at, tempered)
    return logprobs, entropy, first_choice


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
