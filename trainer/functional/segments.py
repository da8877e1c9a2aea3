"""Scans over the trained tokens of each sequence, all sequences at once.

A flat `[N]` tensor is laid out as `[S, R]`: row s holds only the tokens of sequence s that the policy produced, in
order, zeros after them. Tokens in between that are not trained (a tool's answer, a user turn) vanish, so a scan over a
row carries its state across them by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from raylign.data.types import TokenBatch
from torch import Tensor


def sequence_ids(tokens: TokenBatch) -> Tensor:
    """The sequence each token belongs to, [N] int64."""
    rows = torch.arange(tokens.num_sequences, device=tokens.cu_seqlens.device)
    return torch.repeat_interleave(rows, tokens.lengths.long(), output_size=tokens.num_tokens)


def sequence_sum(x: Tensor, tokens: TokenBatch) -> Tensor:
    """Sum of `x [N]` over the trained tokens of each sequence, [S]."""
    zeros = torch.zeros(tokens.num_sequences, dtype=x.dtype, device=x.device)
    return zeros.index_add(0, sequence_ids(tokens), torch.where(tokens.response_mask, x, 0))


def trained_tokens(tokens: TokenBatch) -> Tensor:
    """Trained tokens of each sequence, [S] int64."""
    return sequence_sum(tokens.response_mask.long(), tokens)


def repetition(tokens: TokenBatch, run: int = 4) -> Tensor:
    """Share of the runs of `run` trained tokens that an earlier one of their sequence equals, [S] float64.

    0 for a sequence that is shorter. Runs are numbered exactly, so that none is taken for another.
    """
    size, rows = tokens.num_tokens - run + 1, sequence_ids(tokens)
    if size < 1:
        return torch.zeros(tokens.num_sequences, dtype=torch.float64, device=rows.device)
    token = tokens.input_ids.unique(return_inverse=True)[1]
    number, inside = token[:size], (rows[:size] == rows[run - 1 :]) & tokens.response_mask[:size]
    for k in range(1, run):
        following = token[k : k + size]
        number = (number * (token.max() + 1) + following).unique(return_inverse=True)[1]
        inside = inside & tokens.response_mask[k : k + size]
    base = number.max() + 1
    keys = rows[:size][inside] * base + number[inside]
    total = torch.bincount(rows[:size][inside], minlength=tokens.num_sequences)
    different = torch.bincount(keys.unique() // base, minlength=tokens.num_sequences)
    return (total - different).double() / total.clamp(min=1)


def last_trained(tokens: TokenBatch) -> Tensor:
    """True at the last trained token of each sequence that has one, [N] bool."""
    mask, rows = tokens.response_mask, sequence_ids(tokens)
    position = torch.arange(tokens.num_tokens, device=rows.device)
    last = torch.full((tokens.num_sequences,), -1, device=rows.device)
    last = last.scatter_reduce(0, rows[mask], position[mask], "amax")
    return position == last[rows]


@dataclass(frozen=True, slots=True)
class ResponseLayout:
    """Where each trained token goes in `[S, R]`; R is the most trained tokens a sequence has."""

    index: Tensor  # [T] int64 positions in [0, N) of the T trained tokens
    row: Tensor  # [T] int64
    column: Tensor  # [T] int64
    lengths: Tensor  # [S] int64
    num_tokens: int  # N

    @classmethod
    def of(cls, tokens: TokenBatch) -> Self:
        """The layout of a batch."""
        lengths = trained_tokens(tokens)
        index = tokens.response_mask.nonzero().squeeze(1)
        row = sequence_ids(tokens)[index]
        starts = lengths.cumsum(0) - lengths
        column = torch.arange(index.numel(), device=index.device) - starts[row]
        return cls(index, row, column, lengths, tokens.num_tokens)

    def spread(self, x: Tensor) -> Tensor:
        """[N] -> [S, R], zero after each row's end."""
        width = int(self.lengths.max()) if self.lengths.numel() else 0
        out = torch.zeros(self.lengths.numel(), width, dtype=x.dtype, device=x.device)
        out[self.row, self.column] = x[self.index]
        return out

    def flatten(self, padded: Tensor) -> Tensor:
        """[S, R] -> [N], zero off-mask."""
        out = torch.zeros(self.num_tokens, dtype=padded.dtype, device=padded.device)
        out[self.index] = padded[self.row, self.column]
        return out


def reverse_scan(x: Tensor, decay: float) -> Tensor:
    """`y[:, t] = x[:, t] + decay * y[:, t + 1]`, [S, R]. Loops over time with all sequences side by side."""
    columns = x.t().contiguous()
    out = torch.empty_like(columns)
    carry = torch.zeros_like(x[:, 0]) if x.shape[1] else x.new_zeros(x.shape[0])
    for t in range(columns.shape[0] - 1, -1, -1):
        carry = columns[t] + decay * carry
        out[t] = carry
    return out.t()
