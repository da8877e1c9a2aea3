"""The language-model head block by block: logits of some tokens times part of the vocabulary, and their softmax.

The head is the one layer whose output dwarfs its input: 8k tokens of a 150k vocabulary are 5 GB in float32. Here one
block of logits exists at a time, large enough for good products, and the softmax runs over parts of it that stay in the
cache. How blocks are cut and what is formed in which pass is a head's own choice (logprobs.py, known_gradient.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

GPU_BLOCK_BYTES = 256 << 20
"""Of logits at once on a GPU, where small products waste the machine. On a CPU each head has its own measure."""
TILE_LOGITS = 1 << 20
"""Logits that a CPU's softmax looks at together: 4 MB in float32, so that its passes stay in the cache."""


def accumulate_dtype(x: Tensor) -> torch.dtype:
    """In which softmax and sums over `x` run: float32, or float64 for float64."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def block_size(given: int | None, hidden: Tensor, on_cpu: int) -> int:
    """Bytes of a block: what is given, else what suits the device."""
    return given or (GPU_BLOCK_BYTES if hidden.is_cuda else on_cpu)


def logits_into(buffer: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """`hidden @ weight.T` `[C, V]`, in the flat `buffer` where the product rounds to its dtype anyway, else with the
    accumulator's bits."""
    if hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)  # CUDA only
    return torch.mm(hidden, weight.T, out=block_of(buffer, hidden, weight))


def block_of(buffer: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """The part `[C, V]` of a flat buffer that a block takes."""
    shape = hidden.shape[0], weight.shape[0]
    return buffer[: shape[0] * shape[1]].view(shape)


@dataclass(frozen=True, slots=True)
class Softmax:
    """Some rows of a block in the accumulation dtype."""

    rows: slice  # of the block
    z: Tensor  # [C, V] logits / temperature
    p: Tensor  # [C, V] their softmax over the block's part of the vocabulary

    def sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """logsumexp of z, its mean under p, and its maximum, `[C]` each."""
        highest = self.z.amax(-1)
        # read off the likeliest token, where p is at least 1/V and so never underflows
        return highest - self.p.amax(-1).log(), torch.linalg.vecdot(self.p, self.z), highest

    def times(self, factor: Tensor) -> Tensor:
        """`p * factor[:, None]`, in p's memory."""
        return self.p.mul_(factor[:, None])

    def times_linear(self, slope: Tensor, constant: Tensor) -> Tensor:
        """`p * (z * slope + constant)[:, None]`, in p's memory."""
        return self.p.mul_((self.z * slope[:, None]).add_(constant[:, None]))


def softmax_by_tiles(logits: Tensor, temperature: float) -> Iterator[Softmax]:
    """Of a block `[C, V]`, whose memory may be overwritten row by row as the rows have been given."""
    step = logits.shape[0] if logits.is_cuda else max(1, TILE_LOGITS // logits.shape[1])
    for start in range(0, logits.shape[0], step):
        rows = slice(start, min(start + step, logits.shape[0]))
        z = tempered(logits[rows], temperature)
        yield Softmax(rows, z, z.softmax(-1))


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """In the accumulation dtype; the very same tensor where that changes nothing."""
    z = logits.to(accumulate_dtype(logits))
    return z if temperature == 1 else z / temperature
