"""Log-probs of many sequences by the ranks of a model: dealt, packed, asked round by round, and put back in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from raylign.data.batching import plan_forward
from raylign.data.types import TokenBatch
from raylign.data.work import Sequences, work_of
from torch import Tensor

_MICRO_BATCHES_A_ROUND = 32


class SequenceScorer(Protocol):
    """The ranks of a model."""

    async def sequence_logprobs(self, batches: Sequence[Sequence[TokenBatch]]) -> list[list[Tensor]]:
        """Rank r looks at `batches[r]`; summed log-probs `[S]` of every batch."""
        ...


async def score_sequences(
    sequences: Sequences,
    scorer: SequenceScorer,
    *,
    num_ranks: int,
    micro_batch_tokens: int,
    on_round: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Log-prob of each sequence's masked tokens, float64 `[len(sequences)]`. `on_round` hears how many are done."""
    scores = torch.zeros(len(sequences), dtype=torch.float64)
    for start, end in _rounds(sequences, num_ranks * micro_batch_tokens * _MICRO_BATCHES_A_ROUND):
        chunk = sequences[start:end]
        work = [work_of([sequence]) for sequence in chunk]
        plan = plan_forward(work, num_ranks=num_ranks, micro_batch_tokens=micro_batch_tokens)
        batches = [[_batch(chunk, rows) for rows in rank] for rank in plan]
        for rank, results in zip(plan, await scorer.sequence_logprobs(batches), strict=True):
            for rows, result in zip(rank, results, strict=True):
                scores[[start + row for row in rows]] = result
        on_round(end)
    return scores


def _rounds(sequences: Sequences, budget: int) -> Iterator[tuple[int, int]]:
    """Runs of consecutive sequences of about `budget` tokens."""
    start = tokens = 0
    for i, (ids, _) in enumerate(sequences):
        if tokens and tokens + len(ids) > budget:
            yield start, i
            start, tokens = i, 0
        tokens += len(ids)
    if start < len(sequences):
        yield start, len(sequences)


def _batch(chunk: Sequences, rows: Sequence[int]) -> TokenBatch:
    return TokenBatch.from_sequences([chunk[r][0] for r in rows], [chunk[r][1] for r in rows])
