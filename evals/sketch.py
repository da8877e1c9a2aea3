"""Gradients of a model as a few thousand numbers that keep their inner products.

Every weight is added, with a sign of its own drawn from the seed, to one of `size` sums: a sparse random projection
(count sketch; Charikar et al. 2002, Weinberger et al. 2009, arXiv:0902.2206). The inner product of two sketches is that
of the two vectors on average, with a standard deviation of about |a| |b| / sqrt(size). A model of at most `size`
weights is kept whole, and its inner products are exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_ROWS = 64  # of `size` weights, multiplied at once: what fits a cache


class GradientSketch:
    """One projection of one model's parameters: sketches of different ones do not compare."""

    def __init__(self, sizes: Mapping[str, int], *, size: int, seed: int = 0) -> None:
        """`sizes`: number of weights of each parameter, in order."""
        self.size = max(1, min(size, sum(sizes.values())))
        self._starts: dict[str, int] = {}
        self._signs: dict[str, Tensor] = {}
        begun = 0
        for name, count in sizes.items():
            self._starts[name] = begun % self.size
            self._signs[name] = _signs(count, f"{seed}:{name}")
            begun += count

    def of(self, vectors: Iterable[tuple[str, Tensor]]) -> Tensor:
        """The sketch `[size]` float32 of tensors by parameter name; those left out are 0."""
        sums = torch.zeros(self.size)
        for name, vector in vectors:
            self._add(sums, vector.detach().reshape(-1).float().cpu(), self._starts[name], self._signs[name])
        return sums

    def _add(self, sums: Tensor, values: Tensor, start: int, signs: Tensor) -> None:
        head = min(values.numel(), self.size - start)
        sums[start : start + head] += values[:head] * signs[:head]
        whole = (values.numel() - head) // self.size
        end = head + whole * self.size
        body, body_signs = values[head:end].view(whole, self.size), signs[head:end].view(whole, self.size)
        for first in range(0, whole, _ROWS):
            sums += (body[first : first + _ROWS] * body_signs[first : first + _ROWS]).sum(0)
        sums[: values.numel() - end] += values[end:] * signs[end:]


def _signs(count: int, key: str) -> Tensor:
    """Plus or minus one `[count]` int8, the same wherever it is drawn."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "little")
    drawn = torch.randint(0, 2, (count,), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))
    return drawn * 2 - 1
