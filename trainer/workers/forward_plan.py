"""Which rank looks at which groups, and in which micro-batches. Pure; from the controller's metas alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from data.batching import plan_forward
from data.types import RolloutMeta, TokenBatch, ValueEstimates


@dataclass(frozen=True, slots=True)
class RankPass:
    """One rank's share of a forward pass."""

    groups: tuple[int, ...]  # numbers of groups, ascending
    micro_batches: tuple[tuple[int, ...], ...]  # sequences, numbered through this rank's groups in order


def plan_group_passes(
    groups: Sequence[Sequence[RolloutMeta]], *, num_ranks: int, micro_batch_tokens: int
) -> list[RankPass]:
    """Deal groups to ranks by tokens; cut each rank's sequences into micro-batches of at most `micro_batch_tokens`.

    A group is never split over ranks: it is fetched once. A rank may get nothing, and ranks may differ in their number
    of micro-batches: the learner evens that out.
    """
    tokens = [sum(meta.num_tokens for meta in group) for group in groups]
    shares = plan_forward(tokens, num_ranks=num_ranks, micro_batch_tokens=max(1, sum(tokens)))
    passes = []
    for share in shares:
        numbers = tuple(sorted(g for micro in share for g in micro))
        lengths = [meta.num_tokens for g in numbers for meta in groups[g]]
        micro_batches = plan_forward(lengths, num_ranks=1, micro_batch_tokens=micro_batch_tokens)[0] if lengths else []
        passes.append(RankPass(numbers, tuple(tuple(micro) for micro in micro_batches if micro)))
    return passes


def scatter_tokens(
    parts: Sequence[Tensor], micro_batches: Sequence[Sequence[int]], tokens: TokenBatch, group_sizes: Sequence[int]
) -> list[Tensor]:
    """Put per-token results of micro-batches back in order and cut them by group.

    `parts[i]` belongs to the sequences `micro_batches[i]` of `tokens`; `group_sizes`: sequences of each group.
    """
    flat = torch.zeros(tokens.num_tokens)
    for part, rows in zip(parts, micro_batches, strict=True):
        flat[tokens.token_index(rows)] = part
    bounds = tokens.cu_seqlens.tolist()
    ends = torch.tensor([0, *group_sizes]).cumsum(0).tolist()
    return [flat[bounds[a] : bounds[b]].clone() for a, b in pairwise(ends)]


def scatter_values(
    parts: Sequence[ValueEstimates],
    micro_batches: Sequence[Sequence[int]],
    tokens: TokenBatch,
    group_sizes: Sequence[int],
) -> list[ValueEstimates]:
    """As `scatter_tokens`, for values and their bootstrap."""
    values = scatter_tokens([p.values for p in parts], micro_batches, tokens, group_sizes)
    bootstrap = torch.zeros(tokens.num_sequences)
    for part, rows in zip(parts, micro_batches, strict=True):
        bootstrap[list(rows)] = part.bootstrap
    cut = [b.clone() for b in bootstrap.split(list(group_sizes))] if group_sizes else []
    return [ValueEstimates(v, b) for v, b in zip(values, cut, strict=True)]
