"""Which sequences go into which optimizer step, rank and micro-batch. Pure planning; no padding anywhere.

A *unit* is what may not be split: a sequence, or a pair. The units of a step are shuffled into *windows* (one optimizer
step each), a window is dealt to the ranks so that each gets about the same number of tokens, and a rank's share is cut
into *micro-batches* of at most `micro_batch_tokens`. Windows depend on the seed alone, never on the number of ranks. In
a window, units that share a prompt run together where that costs fewer tokens (data/placing.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from raylign.data.placing import Ranks, place
from raylign.data.types import Denominators, PairBatch, RankShard, TrainBatch, UpdateWindow
from raylign.data.work import UnitWork, tokens_together

B = TypeVar("B", bound=TrainBatch)


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """One optimizer step: `ranks[r]` is rank r's micro-batches, each a tuple of units; `()` is a filler."""

    units: tuple[int, ...]
    ranks: Ranks


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """All optimizer steps of one pass over the units."""

    windows: tuple[WindowPlan, ...]
    last_window_units: int  # units of a last window smaller than the others; 0 when they divide evenly
    num_fillers: int  # micro-batches with nothing to train, that keep ranks in step
    token_imbalance: float  # most loaded rank over the mean rank, the worst window; 1 is perfect


def plan_shards(
    work: Sequence[UnitWork], *, num_ranks: int, units_per_update: int, micro_batch_tokens: int, seed: int
) -> ShardPlan:
    """Plan one pass over units that cost the given tokens.

    Raises ValueError when there is no unit.
    """
    _require_positive(num_ranks=num_ranks, units_per_update=units_per_update, micro_batch_tokens=micro_batch_tokens)
    if not work:
        raise ValueError("there is no sequence to train on: every sample of the step was dropped or failed")
    order = list(range(len(work)))
    random.Random(seed).shuffle(order)
    windows, imbalance = [], 1.0
    for start in range(0, len(order), units_per_update):
        units = order[start : start + units_per_update]
        ranks = place(units, work, num_ranks=num_ranks, budget=micro_batch_tokens)
        loads = [sum(tokens_together(work[u] for u in micro) for micro in rank) for rank in ranks]
        imbalance = max(imbalance, max(loads) * num_ranks / sum(loads))
        windows.append(WindowPlan(tuple(units), ranks))
    rest = len(order) % units_per_update
    fillers = sum(not micro for window in windows for rank in window.ranks for micro in rank)
    return ShardPlan(tuple(windows), rest, fillers, imbalance)


def shard(
    batch: B, *, num_ranks: int, units_per_update: int, micro_batch_tokens: int, seed: int, epochs: int = 1
) -> list[RankShard[B]]:
    """Cut a batch into one shard a rank.

    Every rank has the same number of windows, and in each window the same number of micro-batches. The last window may
    be smaller. Denominators count the whole window over all ranks. Each further epoch runs the very same window objects
    in another order, so it costs no memory.
    Raises ValueError when there is nothing to train on in the batch or in one of its windows.
    """
    plan = plan_shards(
        batch.units(),
        num_ranks=num_ranks,
        units_per_update=units_per_update,
        micro_batch_tokens=micro_batch_tokens,
        seed=seed,
    )
    _require_positive(epochs=epochs)
    denominators = [_denominators(batch.select(window.units)) for window in plan.windows]
    filler = batch.filler() if plan.num_fillers else batch
    orders = [list(range(len(plan.windows))) for _ in range(epochs)]
    for epoch, order in enumerate(orders[1:], start=1):
        random.Random(f"{seed}:{epoch}").shuffle(order)
    shards = []
    for rank in range(num_ranks):
        windows = [
            UpdateWindow(tuple(batch.select(m) if m else filler for m in window.ranks[rank]), counts)
            for window, counts in zip(plan.windows, denominators, strict=True)
        ]
        shards.append(RankShard(tuple(windows[w] for order in orders for w in order)))
    return shards


def plan_forward(work: Sequence[UnitWork], *, num_ranks: int, micro_batch_tokens: int) -> list[list[list[int]]]:
    """Deal items that cost the given tokens to ranks and micro-batches for a pass without gradient.

    Returns `plan[rank][micro_batch] -> items`; every item is in exactly one micro-batch and none is empty. Ranks have
    the same number of micro-batches unless items run out.
    """
    _require_positive(num_ranks=num_ranks, micro_batch_tokens=micro_batch_tokens)
    if not work:
        return [[] for _ in range(num_ranks)]
    ranks = place(range(len(work)), work, num_ranks=num_ranks, budget=micro_batch_tokens)
    return [[list(micro) for micro in rank if micro] for rank in ranks]


def _denominators(batch: TrainBatch) -> Denominators:
    tokens = batch.tokens
    per_token = torch.cat([torch.zeros(1, dtype=torch.int64), tokens.response_mask.long().cumsum(0)])
    trained = per_token[tokens.cu_seqlens.long()].diff()
    count = int(trained.sum())
    if count == 0:
        raise ValueError(f"none of the {tokens.num_sequences} sequences of an optimizer step has a token to train on")
    chosen = float(trained[::2].sum()) if isinstance(batch, PairBatch) else 0.0
    return Denominators(tokens=float(count), sequences=float((trained > 0).sum()), chosen_tokens=chosen)


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more")
