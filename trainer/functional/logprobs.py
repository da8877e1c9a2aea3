"""Log-probability and entropy of given tokens from hidden states, without the [tokens, vocabulary] tensor.

The language-model head is the one layer whose output dwarfs its input: 8k tokens of a 150k vocabulary are 5 GB in
float32. Here logits live for one chunk of tokens at a time, in forward and again in backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

DEFAULT_CHUNK_TOKENS = 512


def fused_linear_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float, chunk_tokens: int = DEFAULT_CHUNK_TOKENS
) -> tuple[Tensor, Tensor]:
    """Log-prob of `targets[m]` under softmax(hidden[m] @ weight.T / temperature), and that distribution's entropy.

    Args:
        hidden: [M, H] states that *predict* the targets (the caller shifts).
        weight: [V, H] of the head, same dtype as hidden.
        targets: [M] int64.
        temperature: the sampling temperature, above 0.
        chunk_tokens: rows whose logits exist at once.

    Returns:
        ([M], [M]) float32 (float64 for float64 inputs), entropy in nats. Both carry gradient to hidden and weight; the
        entropy's costs nothing unless it is used. The GEMMs run in the inputs' dtype, softmax and sums in float32.
    """
    return _LinearLogprobs.apply(hidden, weight, targets, temperature, chunk_tokens)


def linear_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """The same by the definition, with the whole [M, V] in memory: the truth that the fused form is tested against."""
    logits = (hidden @ weight.T).to(_accumulate_dtype(hidden)) / temperature
    log_p = logits.log_softmax(-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


def _accumulate_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Tempered logits of a chunk in the accumulation dtype, [C, V]. A fresh tensor: callers work in place."""
    if hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
        logits = torch.mm(hidden, weight.T, out_dtype=torch.float32)  # keeps the accumulator's bits; CUDA only
    else:
        logits = (hidden @ weight.T).to(_accumulate_dtype(hidden))
    return logits if temperature == 1 else logits.div_(temperature)


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(hidden.shape[0], dtype=_accumulate_dtype(hidden), device=hidden.device)
        entropy, normaliser = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for start in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            logits = _logits(hidden[rows], weight, temperature)
            target = logits.gather(1, targets[rows, None]).squeeze(1)
            highest = logits.amax(-1)
            shifted = logits.sub_(highest[:, None])
            weights = shifted.exp()
            total = weights.sum(-1)
            # H = log sum e^z - (sum z e^z) / (sum e^z), for any shift of z
            entropy[rows] = total.log() - torch.linalg.vecdot(weights, shifted) / total
            normaliser[rows] = highest + total.log()
            logprobs[rows] = target - normaliser[rows]
        ctx.save_for_backward(hidden, weight, targets, normaliser, entropy)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normaliser, entropy = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # Chunks add up in float32: a bfloat16 sum over many chunks would lose its small terms.
        grad_weight = torch.zeros_like(weight, dtype=_accumulate_dtype(weight)) if need_weight else None
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(normaliser)
        for start in range(0, hidden.shape[0], ctx.chunk_tokens):
            rows = slice(start, start + ctx.chunk_tokens)
            log_p = _logits(hidden[rows], weight, ctx.temperature).sub_(normaliser[rows, None])
            upstream = grad_logprobs[rows, None] / ctx.temperature  # here [C, 1], later it would be a pass over [C, V]
            if grad_entropy is None:
                grad = log_p.exp_().mul_(-upstream)
            else:
                # dH/dz_j = -p_j (log p_j + H); d log p_y / dz_j = [j = y] - p_j
                p = log_p.exp()
                entropy_upstream = grad_entropy[rows, None] / ctx.temperature
                grad = log_p.add_(entropy[rows, None]).mul_(entropy_upstream).add_(upstream).mul_(p).neg_()
            grad.scatter_add_(1, targets[rows, None], upstream)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight += grad.T @ hidden[rows]
        return grad_hidden, grad_weight.to(weight.dtype) if grad_weight is not None else None, None, None, None
