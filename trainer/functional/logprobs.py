"""Log-probability and entropy of given tokens from hidden states, without the [tokens, vocabulary] tensor.

Logits live for a block at a time (logit_blocks.py), in forward and again in backward: four products, as the loss's
gradient is known only after the last log-prob. Where it is known sooner, known_gradient.py needs three.
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

CPU_BLOCK_BYTES = 24 << 20
"""Of logits at once: enough for good products; with softmax and a slab's products within 64 MB or little more."""
MAX_BLOCK_TOKENS = 2048
"""More tokens than this make slabs of the vocabulary too narrow for a good product."""


def fused_linear_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float, block_bytes: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob of `targets[m]` under softmax(hidden[m] @ weight.T / temperature), that distribution's entropy, and
    whether no token is likelier than the target.

    Args:
        hidden: [M, H] states that *predict* the targets (the caller shifts).
        weight: [V, H] of the head, same dtype as hidden.
        targets: [M] int64.
        temperature: the sampling temperature, above 0.
        block_bytes: of the logits that exist at once; None for what suits the device.

    Returns:
        ([M], [M], [M]): float32 (float64 for float64 inputs), entropy in nats; the last is bool. The first two carry
        gradient to hidden and weight; the entropy's costs nothing unless it is used. The GEMMs run in the
        inputs' dtype, softmax and sums in float32.
    """
    size = block_size(block_bytes, hidden, CPU_BLOCK_BYTES)
    return _LinearLogprobs.apply(hidden, weight, targets, temperature, size)


def linear_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by the definition, with the whole [M, V] in memory: the truth that the fused form is tested against."""
    logits = (hidden @ weight.T).to(accumulate_dtype(hidden)) / temperature
    log_p = logits.log_softmax(-1)
    chosen = log_p.gather(1, targets[:, None]).squeeze(1)
    return chosen, -(log_p.exp() * log_p).sum(-1), chosen == log_p.amax(-1)


class _Blocks:
    """Where a [M, V] array of logits is cut: slabs of the vocabulary, and in each of them chunks of tokens.

    The vocabulary is the outer loop, so that each part of the weight gets its whole gradient at once: with tokens
    outermost the [V, H] sum would be read and written again for every chunk of tokens.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, block_bytes: int) -> None:
        logits = max(1, block_bytes // hidden.element_size())
        chunk = max(1, min(hidden.shape[0], MAX_BLOCK_TOKENS, logits))
        slab = max(1, min(weight.shape[0], logits // chunk))
        self.chunks, self.slabs = _cut(hidden.shape[0], chunk), _cut(weight.shape[0], slab)
        self.buffer = hidden.new_empty(chunk * slab)


def _cut(total: int, size: int) -> list[slice]:
    """[0, total) in parts of nearly equal size, at most `size` each."""
    count = -(-total // size)
    return [slice(i * total // count, (i + 1) * total // count) for i in range(count)]


def _targets_in(targets: Tensor, slab: slice) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Which targets lie in the slab, [C] bool, and an entry of its block for every row, two [C] int64: the target's, or
    any where it lies elsewhere. Which rows those are is never asked: a GPU's host would wait for the answer.
    """
    place = targets - slab.start
    inside = (place >= 0) & (place < slab.stop - slab.start)
    rows = torch.arange(targets.shape[0], device=targets.device)
    return inside, (rows, place.clamp(0, slab.stop - slab.start - 1))


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, block_bytes: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each slab's sums [S, M], then all together: L = logsumexp of its L_s, a mean weighed by e^(L_s - L)."""
        blocks = _Blocks(hidden, weight, block_bytes)
        target = hidden.new_empty(hidden.shape[0], dtype=accumulate_dtype(hidden))
        log_sums = target.new_empty(len(blocks.slabs), hidden.shape[0])
        means, highest = torch.empty_like(log_sums), torch.empty_like(log_sums)
        for s, slab in enumerate(blocks.slabs):
            for chunk in blocks.chunks:
                logits = logits_into(blocks.buffer, hidden[chunk], weight[slab])
                inside, at = _targets_in(targets[chunk], slab)
                target[chunk] = torch.where(inside, tempered(logits[at], temperature), target[chunk])
                for part in softmax_by_tiles(logits, temperature):
                    sums = part.sums()
                    for kept, found in zip((log_sums, means, highest), sums, strict=True):
                        kept[s, chunk][part.rows] = found
        log_sum = log_sums.logsumexp(0)
        shares = (log_sums - log_sum).exp()  # [S, M] probability of each slab
        logprobs, mean = target - log_sum, (shares * means).sum(0)
        first_choice = target >= highest.amax(0)
        ctx.save_for_backward(hidden, weight, targets, logprobs, shares, mean, log_sum)
        ctx.temperature, ctx.block_bytes = temperature, block_bytes
        ctx.mark_non_differentiable(first_choice)
        ctx.set_materialize_grads(False)
        return logprobs, log_sum - mean, first_choice

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        """Makes each block's logits again; a slab's weight gradient is whole when its tokens are through.

        d log p_y / dz_j = [j = y] - p_j;  dH / dz_j = -p_j (log p_j + H) = -p_j (z_j - mean)
        """
        hidden, weight, targets, logprobs, shares, mean, log_sum = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        # Slabs add up in float32: a bfloat16 sum over many would lose its small terms. A weight's gradient adds up over
        # chunks of MAX_BLOCK_TOKENS in its own dtype: those are few.
        grad_hidden = torch.zeros_like(hidden, dtype=logprobs.dtype) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        upstream = torch.zeros_like(logprobs) if grad_logprobs is None else grad_logprobs / ctx.temperature
        of_target = -upstream * logprobs.expm1()
        if grad_entropy is not None:
            slope = -grad_entropy / ctx.temperature
            constant = -slope * mean - upstream
            of_target += slope * logprobs.exp() * (logprobs + log_sum - mean)
        blocks = _Blocks(hidden, weight, ctx.block_bytes)
        for share, slab in zip(shares, blocks.slabs, strict=True):
            for chunk in blocks.chunks:
                logits = logits_into(blocks.buffer, hidden[chunk], weight[slab])
                grad = block_of(blocks.buffer, hidden[chunk], weight[slab])
                for part in softmax_by_tiles(logits, ctx.temperature):
                    own = slice(chunk.start + part.rows.start, chunk.start + part.rows.stop)
                    if grad_entropy is None:
                        grad[part.rows] = part.times(-share[own] * upstream[own])
                    else:
                        grad[part.rows] = part.times_linear(share[own] * slope[own], share[own] * constant[own])
                inside, at = _targets_in(targets[chunk], slab)
                grad[at] = torch.where(inside, of_target[chunk].to(grad.dtype), grad[at])
                if grad_hidden is not None:
                    grad_hidden[chunk] += grad @ weight[slab]
                if grad_weight is not None:
                    grad_weight[slab].addmm_(grad.T, hidden[chunk])
        return grad_hidden.to(hidden.dtype) if grad_hidden is not None else None, grad_weight, None, None, None
