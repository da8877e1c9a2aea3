"""Which tokens of a batch are computed: what two sequences begin with is computed once.

In a causal model a token's state depends on the tokens before it and on nothing else. Sequences that begin alike (the
two answers of a pair, the samples of a group) therefore have the same states as far as they agree, and a forward pass
needs one of each. A `Packing` is that plan: the model's body runs on the M tokens that are left, all N states are read
from those by index, so nothing outside the forward pass notices, and gradients add up by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from raylign.data.types import TokenBatch
from torch import Tensor

MIN_SAVED = 1 / 32
"""Of a batch's tokens: less than this is not worth looking states up for."""


@dataclass(frozen=True, slots=True)
class Path:
    """One sequence that computes tokens of its own."""

    start: int  # its first token's place in [0, N)
    length: int
    first: int  # tokens at its beginning that another sequence computes


@dataclass(frozen=True, eq=False, slots=True)
class Packing:
    """The plan of one batch: N tokens of S sequences, M of them computed. Hashed by identity."""

    tokens: Tensor  # [M] int64, ascending: the tokens that are computed
    rows: Tensor  # [N] int64: which of the M has a token's state
    positions: Tensor  # [M] int64: each one's place in its sequence
    paths: tuple[Path, ...]  # sequences in order, without those that compute nothing

    @property
    def shared(self) -> bool:
        """Whether any token is computed for more than one sequence."""
        return self.tokens.numel() < self.rows.numel()


def pack(tokens: TokenBatch, *, min_saved: float = MIN_SAVED) -> Packing:
    """Plan a forward pass. What every sequence shares with any other is computed once.

    Nothing is shared when that leaves out less than `min_saved` of the tokens. The result lies where the batch does.
    """
    ids, bounds = tokens.input_ids.cpu().numpy(), tokens.cu_seqlens.tolist()
    firsts, donors = _shared_beginnings([ids[a:b] for a, b in pairwise(bounds)])
    if sum(firsts) == 0 or sum(firsts) < min_saved * ids.size:
        firsts, donors = [0] * len(firsts), []
    computed = np.ones(ids.size, dtype=bool)
    for start, first in zip(bounds[:-1], firsts, strict=True):
        computed[start : start + first] = False
    rows = np.cumsum(computed) - 1
    for s, donor in donors:  # a donor comes before those it gives to
        start, first = bounds[s], firsts[s]
        rows[start : start + first] = rows[bounds[donor] : bounds[donor] + first]
    places = np.arange(ids.size) - np.repeat(np.array(bounds[:-1], dtype=np.int64), np.diff(bounds))
    at = computed.nonzero()[0]
    device = tokens.input_ids.device
    return Packing(
        tokens=torch.from_numpy(at).to(device),
        rows=torch.from_numpy(rows).to(device),
        positions=torch.from_numpy(places[at]).to(device),
        paths=tuple(
            Path(start, stop - start, first)
            for (start, stop), first in zip(pairwise(bounds), firsts, strict=True)
            if stop - start > first
        ),
    )


@dataclass(frozen=True, slots=True)
class Segments:
    """A packing for a kernel that takes queries and keys of different counts, queries being the last of the keys."""

    key_rows: Tensor  # [K] int64: which of the M computed tokens each key is
    query_bounds: Tensor  # [P + 1] int32: of the M queries, path by path
    key_bounds: Tensor  # [P + 1] int32: of the K keys
    most_queries: int
    most_keys: int


@lru_cache(maxsize=8)
def segments(packing: Packing) -> Segments:
    """Every path with the queries it computes and all of its keys. Kept for the model's next layer."""
    paths, rows = packing.paths, packing.rows
    queries, keys = [path.length - path.first for path in paths], [path.length for path in paths]
    return Segments(
        key_rows=torch.cat([rows[path.start : path.start + path.length] for path in paths]),
        query_bounds=torch.tensor([0, *queries]).cumsum(0).to(rows.device, torch.int32),
        key_bounds=torch.tensor([0, *keys]).cumsum(0).to(rows.device, torch.int32),
        most_queries=max(queries),
        most_keys=max(keys),
    )


def _shared_beginnings(sequences: list[NDArray[np.int64]]) -> tuple[list[int], list[tuple[int, int]]]:
    """How many tokens each sequence has in common with an earlier one, and which: (sequence, donor) in that order.

    In the order of a dictionary no earlier sequence has more in common with one than its neighbour has.
    """
    order = sorted(range(len(sequences)), key=[s.tolist() for s in sequences].__getitem__)
    firsts, donors = [0] * len(sequences), []
    for donor, s in pairwise(order):
        firsts[s] = _common(sequences[donor], sequences[s])
        if firsts[s]:
            donors.append((s, donor))
    return firsts, donors


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Tokens that two sequences begin with alike."""
    shorter = min(a.size, b.size)
    differs = (a[:shorter] != b[:shorter]).nonzero()[0]
    return int(differs[0]) if differs.size else shorter
