"""Causal attention over packed sequences for CPUs: every sequence sees itself only, nothing is padded to the longest.

Sequences of nearly equal length share one batched product, long ones are cut into blocks of queries that meet only the
keys before them. The products run in the inputs' dtype; scores exist for one block at a time and are computed again in
backward. torch's own CPU kernel takes 2-3.5 times as long in bfloat16 and 1.1-1.6 times in float32 (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_QUERIES = 64
MAX_PADDING = 0.125
"""Of a tile's positions: sequences of different lengths share a tile up to this waste."""
MAX_TILE_TOKENS = 1024
"""Positions of a tile of several sequences: more would push its scores out of the cache."""


@dataclass(frozen=True, slots=True)
class Tile:
    """B sequences as one batch of length L, for G key-value heads. Rows are of the `[N * G, ...]` view of a tensor."""

    rows: Tensor  # [B * G * L] int64: where each (sequence, head, position) lies; padding points at a real row
    real: Tensor | None  # [M] int64 positions in `rows` that are no padding; None when all are
    length: int  # L


def packed_causal_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], *, scale: float, window: int | None = None
) -> Tensor:
    """softmax(scale Q K^T) V inside each sequence, over the present and earlier tokens (the last `window` of them).

    Args:
        query: [N, H, D].
        key: [N, G, D]; head h of the query meets key head h * G // H (grouped queries).
        value: [N, G, D].
        lengths: tokens of each sequence, in order; their sum is N.
        scale: of the scores, usually D ** -0.5.
        window: tokens a token may see, itself included; None for all.

    Returns:
        [N, H, D]. Carries gradient to query, key and value.
    """
    num_tokens, num_heads, dim = query.shape
    groups = key.shape[1]
    tiles = plan_tiles(tuple(lengths), groups, query.device)
    together = num_heads // groups
    q = query.reshape(num_tokens * groups, together, dim)
    k, v = key.reshape(-1, dim), value.reshape(-1, dim)
    return _PackedAttention.apply(q, k, v, tiles, scale, window).view(num_tokens, num_heads, dim)


@lru_cache(maxsize=32)
def plan_tiles(lengths: tuple[int, ...], groups: int, device: torch.device) -> tuple[Tile, ...]:
    """Sequences in order of length, cut into tiles within MAX_PADDING and MAX_TILE_TOKENS. Kept for the next layer."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    tiles: list[list[int]] = []
    for s in sorted(range(len(lengths)), key=lambda s: (lengths[s], s)):
        if lengths[s] == 0:
            continue
        if tiles:
            members = [*tiles[-1], s]
            size = len(members) * lengths[s]
            waste = size - sum(lengths[m] for m in members)
            if size <= MAX_TILE_TOKENS and waste <= MAX_PADDING * size:
                tiles[-1] = members
                continue
        tiles.append([s])
    return tuple(_tile([(starts[s], lengths[s]) for s in members], groups, device) for members in tiles)


def _tile(sequences: Sequence[tuple[int, int]], groups: int, device: torch.device) -> Tile:
    length = max(n for _, n in sequences)
    begin = torch.tensor([start for start, _ in sequences])[:, None, None]
    count = torch.tensor([n for _, n in sequences])[:, None, None]
    position = torch.arange(length)[None, None, :]
    real = (position < count).expand(-1, groups, -1)
    token = begin + position.minimum(count - 1)
    rows = token * groups + torch.arange(groups)[None, :, None]
    real_at = None if bool(real.all()) else real.flatten().nonzero()[:, 0].to(device)
    return Tile(rows.flatten().to(device), real_at, length)


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries [start, stop) of a tile against keys [0, stop)."""

    start: int
    stop: int
    mask: Tensor  # [1, (stop - start) * R, stop]: 0 or -inf, added to the scores

    def rows(self, x: Tensor, together: int) -> Tensor:
        """The block's queries of `[B * G, L * R, D]`."""
        return x[:, self.start * together : self.stop * together]


def _blocks(length: int, together: int, window: int | None, like: Tensor) -> Iterator[_Block]:
    for start in range(0, length, BLOCK_QUERIES):
        stop = min(length, start + BLOCK_QUERIES)
        keys, queries = torch.arange(stop, device=like.device), torch.arange(start, stop, device=like.device)
        ahead = keys[None, :] - queries[:, None]
        hidden = ahead > 0 if window is None else (ahead > 0) | (ahead <= -window)
        mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))
        yield _Block(start, stop, mask.repeat_interleave(together, 0)[None])


def _probabilities(q: Tensor, k: Tensor, block: _Block, scale: float) -> Tensor:
    return torch.softmax(torch.baddbmm(block.mask, q, k.transpose(1, 2), alpha=scale), -1)


class _PackedAttention(torch.autograd.Function):
    """q `[N * G, R, D]`, k and v `[N * G, D]` -> `[N * G, R, D]`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiles: tuple[Tile, ...], scale: float, window: int | None
    ) -> Tensor:
        """Keeps q, k and v only; scores are made again in backward."""
        together = q.shape[1]
        output = torch.empty_like(q)
        for tile in tiles:
            tq, tk, tv = (_gather(x, tile) for x in (q, k, v))
            out = torch.empty_like(tq)
            for block in _blocks(tile.length, together, window, q):
                p = _probabilities(block.rows(tq, together), tk[:, : block.stop], block, scale)
                torch.bmm(p, tv[:, : block.stop], out=block.rows(out, together))
            _scatter(output, out, tile)
        ctx.save_for_backward(q, k, v)
        ctx.tiles, ctx.scale, ctx.window = tiles, scale, window
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        grads = tuple(torch.empty_like(x) for x in (q, k, v))
        grad_output = grad_output.contiguous()
        for tile in ctx.tiles:
            tq, tk, tv, upstream = (_gather(x, tile) for x in (q, k, v, grad_output))
            if tile.real is not None:
                upstream = _without_padding(upstream, tile, q.shape[1])
            found = _tile_gradients(tq, tk, tv, upstream, tile.length, ctx.scale, ctx.window)
            for grad, part in zip(grads, found, strict=True):
                _scatter(grad, part, tile)
        return (*grads, None, None, None)


def _tile_gradients(
    q: Tensor, k: Tensor, v: Tensor, upstream: Tensor, length: int, scale: float, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one tile: q and upstream `[B * G, L * R, D]`, k and v `[B * G, L, D]`."""
    together = q.shape[1] // length
    wide = torch.float64 if q.dtype is torch.float64 else torch.float32  # blocks add up in float32
    grad_q = torch.empty_like(q)
    grad_k, grad_v = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
    for block in _blocks(length, together, window, q):
        seen = slice(0, block.stop)
        bq, g = block.rows(q, together), block.rows(upstream, together)
        p = _probabilities(bq, k[:, seen], block, scale)
        grad_v[:, seen] += torch.bmm(p.transpose(1, 2), g)
        grad_p = torch.bmm(g, v[:, seen].transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype).mul_(scale)
        grad_k[:, seen] += torch.bmm(grad_scores.transpose(1, 2), bq)
        torch.bmm(grad_scores, k[:, seen], out=block.rows(grad_q, together))
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def _gather(x: Tensor, tile: Tile) -> Tensor:
    """`[N * G, (R,) D]` -> `[B * G, L (* R), D]`."""
    batch = tile.rows.numel() // tile.length
    return x.index_select(0, tile.rows).view(batch, -1, x.shape[-1])


def _scatter(target: Tensor, part: Tensor, tile: Tile) -> None:
    """The inverse of `_gather`: every real row is written once."""
    rows = part.view(tile.rows.numel(), *target.shape[1:])
    if tile.real is None:
        target.index_copy_(0, tile.rows, rows)
    else:
        target.index_copy_(0, tile.rows[tile.real], rows[tile.real])


def _without_padding(upstream: Tensor, tile: Tile, together: int) -> Tensor:
    """Padding positions point at real rows: their share of the gradient must not be counted again."""
    keep = upstream.new_zeros(tile.rows.numel())
    keep[tile.real] = 1
    return upstream.view(tile.rows.numel(), together, -1).mul_(keep[:, None, None]).view_as(upstream)
