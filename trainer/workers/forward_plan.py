"""Which rank looks at which groups, and in which micro-batches. Pure; from the controller's metas alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from raylign.data.batching import plan_forward
from raylign.data.placing import deal
from raylign.data.types import RolloutGroup, RolloutMeta, TokenBatch, ValueEstimates
from raylign.data.work import UnitWork, tokens_together
from torch import Tensor


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
    work = [[UnitWork(g, meta.prompt_tokens, meta.response_tokens) for meta in group] for g, group in enumerate(groups)]
    shares = deal(range(len(groups)), [tokens_together(units) for units in work], num_ranks)
    passes = []
    for share in map(sorted, shares):
        mine = [unit for g in share for unit in work[g]]
        [micro_batches] = plan_forward(mine, num_ranks=1, micro_batch_tokens=micro_batch_tokens)
        passes.append(RankPass(tuple(share), tuple(tuple(micro) for micro in micro_batches)))
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


def as_teacher(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """The groups after the prompts that a teacher reads, where a prompt has another for it."""
    return [
        replace(g, prompt=replace(g.prompt, token_ids=g.prompt.teacher_ids)) if g.prompt.teacher_ids else g
        for g in groups
    ]


def realigned(
    parts: Sequence[Tensor], seen: TokenBatch, tokens: TokenBatch, group_sizes: Sequence[int]
) -> list[Tensor]:
    """Results by group of `seen` as those of `tokens`: the same answers' tokens after other prompts."""
    flat = torch.zeros(tokens.num_tokens)
    flat[tokens.response_mask] = torch.cat(list(parts))[seen.response_mask]
    return scatter_tokens([flat], [range(tokens.num_sequences)], tokens, group_sizes)


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
