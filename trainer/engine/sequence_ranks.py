"""Several ranks compute one batch together, each a stretch of its tokens (DeepSpeed-Ulysses, Jacobs et al. 2023,
arXiv:2309.14509): for contexts whose activations one card cannot hold. The all-to-all round attention is DeepSpeed's.

All ranks of a group are given the same batch. Everything outside attention acts on a token alone, so a rank runs it on
its own L of the M computed tokens. Round attention an exchange gives a rank all tokens of some heads; what a sequence
is, what it shares with others and how far it looks back is decided there by the same function as ever. Log-probs and
scores are put together afterwards, so that every rank has the whole loss: labels across a border need no exchange, and
no algorithm knows of the split.

**Gradients.** Each rank keeps the part of the loss's gradient that belongs to its own tokens and sends nothing back, so
its weights' gradients are the share of its tokens. The engine adds those of all ranks up, as it does anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from raylign.trainer.models.sequence_split import Attend, SequenceSplit
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, eq=False, slots=True)
class SequenceRanks:
    """One rank's place among those that compute a batch together: a SequenceSplit."""

    rank: int  # in the group
    size: int
    group: dist.ProcessGroup

    def own(self, count: int, device: torch.device) -> Tensor:
        """Which of the M tokens this rank computes, `[L]`; where ranks do not divide M, fillers repeat the last one."""
        length = self._length(count)
        return torch.arange(self.rank * length, (self.rank + 1) * length, device=device).clamp_(max=count - 1)

    def place(self, rows: Tensor, count: int) -> Tensor:
        """Where rows of the M tokens are among this rank's L; outside [0, L) for another rank's."""
        return rows - self.rank * self._length(count)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, count: int, attend: Attend) -> Tensor:
        """Attention of all M tokens, from and to this rank's: query `[L, H, D]` -> `[L, H, E]`. Collective.

        Raises ValueError for heads that the ranks cannot share.
        """
        heads, groups = query.shape[1], key.shape[1]
        if heads % self.size or groups % self.size:
            raise ValueError(f"{self.size} ranks cannot share {heads} attention heads and {groups} key-value heads")
        from deepspeed.sequence.layer import DistributedAttention

        local = partial(_whole_tokens, count=count, attend=attend)
        distributed = DistributedAttention(cast(nn.Module, local), self.group, scatter_idx=2, gather_idx=0)
        return cast(Tensor, distributed(*(x.unsqueeze(1) for x in (query, key, value)), 1)).squeeze(1)

    def joined(self, own: Tensor, count: int) -> Tensor:
        """This rank's `[L, ...]` with all others': `[M, ...]`. Its gradient is the own part's. Collective."""
        return cast(Tensor, _Joined.apply(own, self, count))

    def added(self, own: Tensor) -> Tensor:
        """The sum over ranks, of which each has filled in other places. Its gradient is passed on. Collective."""
        return cast(Tensor, _Added.apply(own, self.group))

    def _length(self, count: int) -> int:
        """Tokens of each rank: L."""
        return -(-count // self.size)


def sequence_ranks(rank: int, world_size: int, size: int, timeout_s: float) -> SequenceSplit | None:
    """Groups of `size` neighbouring ranks, of whom this is in one; None where each is alone. Collective."""
    if size == 1:
        return None
    mine = None
    for first in range(0, world_size, size):
        group = dist.new_group(list(range(first, first + size)), timeout=timedelta(seconds=timeout_s))
        if first <= rank < first + size:
            mine = group
    return SequenceRanks(rank % size, size, cast(dist.ProcessGroup, mine))


def _whole_tokens(query: Tensor, key: Tensor, value: Tensor, *, count: int, attend: Attend) -> Tensor:
    """`attend` on the M tokens among `[size L, 1, ...]`; fillers get zeros."""
    found = attend(*(x[:count, 0] for x in (query, key, value)))
    return F.pad(found, (0, 0, 0, 0, 0, query.shape[0] - count)).unsqueeze(1)


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, split: SequenceRanks, count: int) -> Tensor:
        ctx.split, ctx.length = split, own.shape[0]
        whole = own.new_empty(split.size * own.shape[0], *own.shape[1:])
        dist.all_gather_into_tensor(whole, own.contiguous(), group=split.group)
        return whole[:count]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        own = grad.new_zeros(ctx.length, *grad.shape[1:])
        mine = grad[ctx.split.rank * ctx.length : (ctx.split.rank + 1) * ctx.length]
        own[: mine.shape[0]] = mine
        return own, None, None


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = own.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
