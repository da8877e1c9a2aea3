"""Packed sequences as batches of nearly equal length, for attention by batched products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from raylign.trainer.functional.packing import Packing, Path
from torch import Tensor

MAX_PADDING = 0.125
"""Of a tile's queries: sequences of different lengths share a tile up to this waste."""
MAX_TILE_TOKENS = 1024
"""Positions of a tile of several sequences: more would push its scores out of the cache."""


@dataclass(frozen=True, slots=True)
class Tile:
    """B sequences as one batch, for G key-value heads. Rows are of the `[M * G, ...]` view of a tensor.

    Keys lie at positions [0, L), queries at [f, L): what comes before is computed for all of them in another tile.
    """

    keys: Tensor  # [B * G * L] int64: where each (sequence, head, position) lies; padding points at a real row
    queries: Tensor  # [B * G * (L - f)] int64: the same of the positions from f on
    own: Tensor | None  # [K] int64: the `queries` that are neither padding nor another sequence's; None when all are
    length: int  # L
    first: int  # f


@lru_cache(maxsize=8)
def plan_tiles(packing: Packing, groups: int) -> tuple[Tile, ...]:
    """Cut into tiles within MAX_PADDING and MAX_TILE_TOKENS. Kept for the model's next layer."""
    tiles: list[list[Path]] = []
    for path in sorted(packing.paths, key=lambda p: (p.first, p.length)):
        if tiles and _fit([*tiles[-1], path]):
            tiles[-1].append(path)
        else:
            tiles.append([path])
    rows = packing.rows.cpu()
    return tuple(_tile(paths, rows, groups, packing.rows.device) for paths in tiles)


def _fit(paths: Sequence[Path]) -> bool:
    length, first = max(p.length for p in paths), min(p.first for p in paths)
    queries = len(paths) * (length - first)
    waste = queries - sum(p.length - p.first for p in paths)
    return len(paths) * length <= MAX_TILE_TOKENS and waste <= MAX_PADDING * queries


def _tile(paths: Sequence[Path], rows: Tensor, groups: int, device: torch.device) -> Tile:
    length, first = max(p.length for p in paths), min(p.first for p in paths)
    start, count, own_from = (
        torch.tensor(x)[:, None, None] for x in zip(*((p.start, p.length, p.first) for p in paths), strict=True)
    )
    position = torch.arange(length)[None, None, :]
    token = rows[start + position.minimum(count - 1)]
    keys = token * groups + torch.arange(groups)[None, :, None]  # [B, G, L]
    own = ((position >= own_from) & (position < count)).expand_as(keys)[:, :, first:]
    return Tile(
        keys=keys.flatten().to(device),
        queries=keys[:, :, first:].flatten().to(device),
        own=None if bool(own.all()) else own.flatten().nonzero()[:, 0].to(device),
        length=length,
        first=first,
    )
