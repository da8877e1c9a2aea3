"""Which units run together: dealt to the ranks by the tokens they cost, and cut into micro-batches. Pure planning.

Units of one family (data/work.py) stay together as far as that keeps the micro-batches within their budget and the
ranks at equal work.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Mapping, Sequence

from raylign.data.work import UnitWork, tokens_together

Ranks = tuple[tuple[tuple[int, ...], ...], ...]
"""`ranks[r][i]`: the units of rank r's micro-batch i; `()` where a rank has fewer than the others."""

Pieces = list[list[int]]
"""Units that go together."""
Costs = Sequence[int] | Mapping[int, int]
"""Tokens of each item, by its number."""


def place(units: Sequence[int], work: Sequence[UnitWork], *, num_ranks: int, budget: int) -> Ranks:
    """Every unit once. A micro-batch costs at most `budget` tokens, or is one unit; all ranks have the same number.

    Large pieces of families cost the fewest tokens, small ones balance better: the finest division is tried and some
    coarser ones, and the one whose ranks are through first is taken.
    """
    placed = [_placed(pieces, work, num_ranks, budget) for pieces in _divisions(units, work, num_ranks, budget)]
    return min(placed, key=lambda ranks: (_time(ranks, work), len(ranks[0])))


def _placed(pieces: Pieces, work: Sequence[UnitWork], num_ranks: int, budget: int) -> Ranks:
    """Each rank's pieces in the same number of micro-batches, the largest first so that ranks meet at equal work."""
    costs = [tokens_together(work[u] for u in piece) for piece in pieces]
    shares = deal(range(len(pieces)), costs, num_ranks)
    packed = [_pack(share, costs, budget) for share in shares]
    count = max(len(bins) for bins in packed)
    ranks = [_even_out(share, bins, costs, budget, count) for share, bins in zip(shares, packed, strict=True)]
    joined = [[tuple(u for piece in bin_ for u in pieces[piece]) for bin_ in bins] for bins in ranks]
    return tuple(tuple(sorted(micros, key=lambda m: -tokens_together(work[u] for u in m))) for micros in joined)


def _time(ranks: Ranks, work: Sequence[UnitWork]) -> int:
    """Tokens of the slowest rank, micro-batch by micro-batch: ranks that gather weights wait for each other."""
    return sum(
        max(tokens_together(work[u] for u in micro) for micro in meeting) for meeting in zip(*ranks, strict=True)
    )


def _divisions(units: Sequence[int], work: Sequence[UnitWork], num_ranks: int, budget: int) -> Iterator[Pieces]:
    families: dict[Hashable, list[int]] = {}
    for u in units:
        families.setdefault(work[u].family, []).append(u)
    if len(families) < len(units):
        share = tokens_together(work[u] for u in units) // num_ranks
        for limit in sorted({min(budget, share // parts) for parts in (1, 2, 4, 8)} - {0}):
            yield [piece for members in families.values() for piece in _pieces(members, work, limit)]
    yield [[u] for u in units]


def _pieces(members: Sequence[int], work: Sequence[UnitWork], limit: int) -> Pieces:
    """A family in parts of at most `limit` tokens, of about the same size."""
    own = {u: work[u].own for u in members}
    room = limit - work[members[0]].shared
    packed = _pack(members, own, room)
    return _even_out(members, packed, own, room, len(packed))


def deal(units: Sequence[int], costs: Costs, num_bins: int) -> list[list[int]]:
    """Longest first, each to the bin with the fewest tokens so far (Graham 1969: within 4/3 of the best)."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    lightest = [(0, 0, b) for b in range(num_bins)]  # a heap by tokens, then by units
    for unit in sorted(units, key=lambda u: (-costs[u], u)):
        load, count, b = lightest[0]
        bins[b].append(unit)
        heapq.heapreplace(lightest, (load + costs[unit], count + 1, b))
    return bins


def _pack(units: Sequence[int], costs: Costs, budget: int) -> list[list[int]]:
    """First-fit decreasing: few parts of at most `budget` tokens; a longer item goes alone."""
    bins: list[list[int]] = []
    loads: list[int] = []
    for unit in sorted(units, key=lambda u: (-costs[u], u)):
        fit = next((b for b, load in enumerate(loads) if load + costs[unit] <= budget), None)
        if fit is None:
            bins.append([unit])
            loads.append(costs[unit])
        else:
            bins[fit].append(unit)
            loads[fit] += costs[unit]
    return bins


def _even_out(share: Sequence[int], packed: list[list[int]], costs: Costs, budget: int, count: int) -> list[list[int]]:
    """`count` parts of even size when they keep the budget, else the packed ones; `[]` where units run out."""
    even = deal(share, costs, count)
    fits = all(len(bin_) <= 1 or sum(costs[u] for u in bin_) <= budget for bin_ in even)
    return even if fits else packed + [[]] * (count - len(packed))
