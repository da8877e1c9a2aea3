"""Which sequences go into which optimizer step, rank and micro-batch. Pure planning; no padding anywhere.

A *unit* is what may not be split: a sequence, or a pair. The units of a step are shuffled into *windows* (one optimizer
step each), a window is dealt to the ranks so that each gets about the same number of tokens, and a rank's share is cut
into *micro-batches* of at most `micro_batch_tokens`. Windows depend on the seed alone, never on the number of ranks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from data.types import Denominators, PairBatch, RankShard, TrainBatch, UpdateWindow

B = TypeVar("B", bound=TrainBatch)


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """One optimizer step: `ranks[r]` is rank r's micro-batches, each a tuple of units; `()` stands for a filler."""

    units: tuple[int, ...]
    ranks: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """All optimizer steps of one pass over the units."""

    windows: tuple[WindowPlan, ...]
    last_window_units: int  # units of a last window smaller than the others; 0 when they divide evenly
    num_fillers: int  # micro-batches with nothing to train, that keep ranks in step
    token_imbalance: float  # most loaded rank over the mean rank, the worst window; 1 is perfect


def plan_shards(
    lengths: Sequence[int], *, num_ranks: int, units_per_update: int, micro_batch_tokens: int, seed: int
) -> ShardPlan:
    """Plan one pass over units of the given token counts.

    Raises ValueError when there is no unit.
    """
    _require_positive(num_ranks=num_ranks, units_per_update=units_per_update, micro_batch_tokens=micro_batch_tokens)
    if not lengths:
        raise ValueError("there is no sequence to train on: every sample of the step was dropped or failed")
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    windows, imbalance = [], 1.0
    for start in range(0, len(order), units_per_update):
        units = order[start : start + units_per_update]
        shares = _deal(units, lengths, num_ranks)
        loads = [sum(lengths[u] for u in share) for share in shares]
        imbalance = max(imbalance, max(loads) * num_ranks / sum(loads))
        windows.append(WindowPlan(tuple(units), _in_step(shares, lengths, micro_batch_tokens)))
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
    lengths = batch.unit_lengths()
    plan = plan_shards(
        lengths,
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


def plan_forward(lengths: Sequence[int], *, num_ranks: int, micro_batch_tokens: int) -> list[list[list[int]]]:
    """Deal items of the given token counts to ranks and micro-batches for a pass without gradient.

    Returns `plan[rank][micro_batch] -> items`; every item is in exactly one micro-batch and none is empty. Ranks have
    the same number of micro-batches unless items run out.
    """
    _require_positive(num_ranks=num_ranks, micro_batch_tokens=micro_batch_tokens)
    shares = _deal(range(len(lengths)), lengths, num_ranks)
    return [[list(micro) for micro in rank if micro] for rank in _in_step(shares, lengths, micro_batch_tokens)]


def _deal(units: Sequence[int], lengths: Sequence[int], num_bins: int) -> list[list[int]]:
    """Longest first, each to the bin with the fewest tokens so far (Graham 1969: within 4/3 of the best)."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    loads = [0] * num_bins
    for unit in sorted(units, key=lambda u: (-lengths[u], u)):
        lightest = min(range(num_bins), key=lambda b: (loads[b], len(bins[b]), b))
        bins[lightest].append(unit)
        loads[lightest] += lengths[unit]
    return bins


def _pack(units: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """First-fit decreasing: few micro-batches of at most `budget` tokens; a longer unit goes alone."""
    bins: list[list[int]] = []
    loads: list[int] = []
    for unit in sorted(units, key=lambda u: (-lengths[u], u)):
        fit = next((b for b, load in enumerate(loads) if load + lengths[unit] <= budget), None)
        if fit is None:
            bins.append([unit])
            loads.append(lengths[unit])
        else:
            bins[fit].append(unit)
            loads[fit] += lengths[unit]
    return bins


def _in_step(
    shares: Sequence[Sequence[int]], lengths: Sequence[int], budget: int
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Each rank's share in the same number of micro-batches, the largest first so that ranks meet at equal work."""
    packed = [_pack(share, lengths, budget) for share in shares]
    count = max(len(bins) for bins in packed)
    return tuple(_even_out(share, bins, lengths, budget, count) for share, bins in zip(shares, packed, strict=True))


def _even_out(
    share: Sequence[int], packed: list[list[int]], lengths: Sequence[int], budget: int, count: int
) -> tuple[tuple[int, ...], ...]:
    """`count` micro-batches of even size when they keep the budget, else the packed ones; `()` where units run out."""
    even = _deal(share, lengths, count)
    fits = all(len(bin_) <= 1 or sum(lengths[u] for u in bin_) <= budget for bin_ in even)
    bins = even if fits else packed + [[]] * (count - len(packed))
    return tuple(tuple(bin_) for bin_ in sorted(bins, key=lambda bin_: -sum(lengths[u] for u in bin_)))


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
