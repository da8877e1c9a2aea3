"""Log-probability and entropy of given tokens from hidden states, without the [tokens, vocabulary] tensor.

The language-model head is the one layer whose output dwarfs its input: 8k tokens of a 150k vocabulary are 5 GB in
float32. Here logits live for one tile of tokens times vocabulary at a time, in forward and again in backward. The
vocabulary is the outer loop, so that each part of the weight gets its whole gradient at once: with tokens outermost
the [V, H] sum would be read and written again for every chunk of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

DEFAULT_TILE_LOGITS = 4 << 20
"""16 MB in float32: a CPU's cache holds most of it."""
MAX_TILE_TOKENS = 2048
"""More tokens than this make tiles of the vocabulary too narrow for a good product."""


def fused_linear_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float, tile_logits: int = DEFAULT_TILE_LOGITS
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob of `targets[m]` under softmax(hidden[m] @ weight.T / temperature), that distribution's entropy, and
    whether no token is likelier than the target.

    Args:
        hidden: [M, H] states that *predict* the targets (the caller shifts).
        weight: [V, H] of the head, same dtype as hidden.
        targets: [M] int64.
        temperature: the sampling temperature, above 0.
        tile_logits: logits that exist at once.

    Returns:
        ([M], [M], [M]): float32 (float64 for float64 inputs), entropy in nats; the last is bool. The first two carry
        gradient to hidden and weight; the entropy's costs nothing unless it is used. The GEMMs run in the
        inputs' dtype, softmax and sums in float32.
    """
    return _LinearLogprobs.apply(hidden, weight, targets, temperature, tile_logits)


def linear_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by the definition, with the whole [M, V] in memory: the truth that the fused form is tested against."""
    logits = (hidden @ weight.T).to(accumulate_dtype(hidden)) / temperature
    log_p = logits.log_softmax(-1)
    chosen = log_p.gather(1, targets[:, None]).squeeze(1)
    return chosen, -(log_p.exp() * log_p).sum(-1), chosen == log_p.amax(-1)


def accumulate_dtype(x: Tensor) -> torch.dtype:
    """In which softmax and sums over `x` run: float32, or float64 for float64."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Tempered logits of a chunk in the accumulation dtype, [C, V]. A fresh tensor: callers work in place."""
    if hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
        logits = torch.mm(hidden, weight.T, out_dtype=torch.float32)  # keeps the accumulator's bits; CUDA only
    else:
        logits = (hidden @ weight.T).to(accumulate_dtype(hidden))
    return logits if temperature == 1 else logits.div_(temperature)


class _Tiles:
    """Where a [M, V] array of logits is cut: slabs of the vocabulary, and in each of them chunks of tokens."""

    def __init__(self, num_tokens: int, vocab_size: int, tile_logits: int) -> None:
        self._num_tokens, self._vocab_size = num_tokens, vocab_size
        self._chunk = max(1, min(num_tokens, MAX_TILE_TOKENS, tile_logits))
        self._slab = max(1, min(vocab_size, tile_logits // self._chunk))

    def slabs(self) -> Iterator[slice]:
        """Parts of the vocabulary."""
        for start in range(0, self._vocab_size, self._slab):
            yield slice(start, min(start + self._slab, self._vocab_size))

    def chunks(self) -> Iterator[slice]:
        """Parts of the tokens."""
        for start in range(0, self._num_tokens, self._chunk):
            yield slice(start, min(start + self._chunk, self._num_tokens))


def _targets_in(targets: Tensor, slab: slice) -> tuple[Tensor, Tensor]:
    """Rows whose target lies in the slab, and its place there. Two [K] int64."""
    rows = ((targets >= slab.start) & (targets < slab.stop)).nonzero()[:, 0]
    return rows, targets[rows] - slab.start


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, tile_logits: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A running maximum, sum and first moment over the slabs of the vocabulary."""
        tiles = _Tiles(hidden.shape[0], weight.shape[0], tile_logits)
        target = torch.zeros(hidden.shape[0], dtype=accumulate_dtype(hidden), device=hidden.device)
        highest = torch.full_like(target, float("-inf"))
        total, moment = torch.zeros_like(target), torch.zeros_like(target)  # sum e^x and sum x e^x, x = z - highest
        for slab in tiles.slabs():
            for rows in tiles.chunks():
                logits = _logits(hidden[rows], weight[slab], temperature)
                at, place = _targets_in(targets[rows], slab)
                target[rows][at] = logits[at, place]
                before = highest[rows]
                now = torch.maximum(before, logits.amax(-1))
                shift = (before - now).clamp_(min=torch.finfo(target.dtype).min)  # -inf at the first slab
                shifted = logits.sub_(now[:, None])
                weights = shifted.exp()
                # sum (x + d) e^(x + d) = e^d (sum x e^x + d sum e^x)
                moment[rows] = (moment[rows] + shift * total[rows]) * shift.exp()
                moment[rows] += torch.linalg.vecdot(weights, shifted)
                total[rows] = total[rows] * shift.exp() + weights.sum(-1)
                highest[rows] = now
        normaliser = highest + total.log()
        entropy = total.log() - moment / total
        ctx.save_for_backward(hidden, weight, targets, normaliser, entropy)
        ctx.temperature, ctx.tiles = temperature, tiles
        first_choice = target >= highest
        ctx.mark_non_differentiable(first_choice)
        ctx.set_materialize_grads(False)
        return target - normaliser, entropy, first_choice

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        """Makes each tile's logits again; a slab's weight gradient is whole when its tokens are through."""
        hidden, weight, targets, normaliser, entropy = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        # Tiles add up in float32: a bfloat16 sum over many would lose its small terms.
        grad_hidden = torch.zeros_like(hidden, dtype=normaliser.dtype) if need_hidden else None
        grad_weight = torch.empty_like(weight) if need_weight else None
        upstream = torch.zeros_like(normaliser) if grad_logprobs is None else grad_logprobs / ctx.temperature
        entropy_upstream = None if grad_entropy is None else grad_entropy / ctx.temperature
        for slab in ctx.tiles.slabs():
            slab_sum = torch.zeros_like(weight[slab], dtype=normaliser.dtype) if need_weight else None
            for rows in ctx.tiles.chunks():
                log_p = _logits(hidden[rows], weight[slab], ctx.temperature).sub_(normaliser[rows, None])
                grad = _logit_gradient(
                    log_p, upstream[rows], None if entropy_upstream is None else entropy_upstream[rows], entropy[rows]
                )
                at, place = _targets_in(targets[rows], slab)
                grad[at, place] += upstream[rows][at]
                grad = grad.to(hidden.dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] += grad @ weight[slab]
                if slab_sum is not None:
                    slab_sum += grad.T @ hidden[rows]
            if grad_weight is not None and slab_sum is not None:
                grad_weight[slab] = slab_sum
        return grad_hidden.to(hidden.dtype) if grad_hidden is not None else None, grad_weight, None, None, None


def _logit_gradient(log_p: Tensor, upstream: Tensor, entropy_upstream: Tensor | None, entropy: Tensor) -> Tensor:
    """Of every logit of a tile, but for the targets' own share of the log-prob. Overwrites `log_p` `[C, V']`.

    d log p_y / dz_j = [j = y] - p_j;  dH / dz_j = -p_j (log p_j + H)
    """
    if entropy_upstream is None:
        return log_p.exp_().mul_(-upstream[:, None])
    p = log_p.exp()
    return log_p.add_(entropy[:, None]).mul_(entropy_upstream[:, None]).add_(upstream[:, None]).mul_(p).neg_()
