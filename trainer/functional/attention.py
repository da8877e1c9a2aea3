"""Causal attention over packed sequences for CPUs: every sequence sees itself only, nothing is padded to the longest.

Sequences of nearly equal length share one batched product, long ones are cut into blocks of queries that meet only the
keys before them. The products run in the inputs' dtype; scores exist for one block at a time and are computed again in
backward. torch's own CPU kernel takes 2-3.5 times as long in bfloat16 and 1.1-1.6 times in float32 (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from raylign.trainer.functional.logit_blocks import accumulate_dtype
from raylign.trainer.functional.packing import Packing
from raylign.trainer.functional.tiles import Tile, plan_tiles
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_QUERIES = 128


def packed_causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """softmax(cap(scale Q K^T)) V inside each sequence, over itself and earlier tokens (`window` in all).

    Args:
        query: [M, H, D] of the tokens that `packing` computes.
        key: [M, G, D]; head h of the query meets key head h * G // H (grouped queries).
        value: [M, G, E]; E may differ from D (multi-head latent attention).
        packing: where each sequence's tokens are among the M.
        scale: of the scores, usually D ** -0.5.
        window: tokens a token may see, itself included; None for all.
        softcap: c of cap(x) = c tanh(x / c) (Gemma 2, arXiv:2408.00118); None: cap(x) = x.

    Returns:
        [M, H, E]. Carries gradient to query, key and value; a shared token's key and value get it from every sequence.
    """
    num_tokens, num_heads, dim = query.shape
    groups = key.shape[1]
    tiles = plan_tiles(packing, groups)
    together = num_heads // groups
    q = query.reshape(num_tokens * groups, together, dim)
    k, v = key.reshape(-1, dim), value.reshape(-1, value.shape[-1])
    return _PackedAttention.apply(q, k, v, tiles, packing.shared, _Scores(scale, window, softcap)).view(
        num_tokens, num_heads, -1
    )


@dataclass(frozen=True, slots=True)
class _Scores:
    """How products of queries and keys become scores."""

    scale: float
    window: int | None
    softcap: float | None


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries at positions [start, stop) of a tile against its keys [low, stop)."""

    queries: slice  # of the tile's rows of queries, R heads to a position
    keys: slice
    mask: Tensor  # [(stop - start) * R, W]: 0 or -inf, added to the scores of the last W keys


def _blocks(tile: Tile, together: int, window: int | None, like: Tensor) -> Iterator[_Block]:
    for start in range(tile.first, tile.length, BLOCK_QUERIES):
        stop = min(tile.length, start + BLOCK_QUERIES)
        low = 0 if window is None else max(0, start - window + 1)
        width = stop - (start if window is None else low)
        yield _Block(
            slice((start - tile.first) * together, (stop - tile.first) * together),
            slice(low, stop),
            _mask(stop - start, width, together, window, like.dtype, like.device),
        )


@lru_cache(maxsize=256)
def _mask(
    queries: int, width: int, together: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What the last `queries` of `width` positions may not see of them. The same for every layer, so it is kept."""
    ahead = torch.arange(width)[None, :] - torch.arange(width - queries, width)[:, None]
    hidden = ahead > 0 if window is None else (ahead > 0) | (ahead <= -window)
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
    return mask.repeat_interleave(together, 0).to(device)


def _probabilities(q: Tensor, k: Tensor, mask: Tensor, how: _Scores) -> tuple[Tensor, Tensor | None]:
    """q `[B, Q, D]`, k `[B, K, D]` -> `[B, Q, K]`; and with a soft-cap its derivative, of the same shape."""
    scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=how.scale)
    slope = None
    if how.softcap is not None:
        tanh = scores.div_(how.softcap).tanh_()
        slope = 1 - tanh * tanh
        scores = tanh.mul_(how.softcap)
    scores[:, :, -mask.shape[1] :] += mask
    return torch.softmax(scores, -1), slope


class _PackedAttention(torch.autograd.Function):
    """q `[M * G, R, D]`, k and v `[M * G, D]` -> `[M * G, R, D]`."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tiles: tuple[Tile, ...],
        shared: bool,
        how: _Scores,
    ) -> Tensor:
        """Keeps q, k and v only; scores are made again in backward. `shared`: tiles may have keys in common."""
        output = q.new_empty(*q.shape[:2], v.shape[-1])
        for tile in tiles:
            tq, tk, tv = _queries(q, tile), _keys(k, tile), _keys(v, tile)
            out = tq.new_empty(*tq.shape[:2], v.shape[-1])
            for block in _blocks(tile, q.shape[1], how.window, q):
                p, _ = _probabilities(tq[:, block.queries], tk[:, block.keys], block.mask, how)
                torch.bmm(p, tv[:, block.keys], out=out[:, block.queries])
            _put_queries(output, out, tile)
        ctx.save_for_backward(q, k, v)
        ctx.tiles, ctx.shared, ctx.how = tiles, shared, how
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Tile by tile, as forward; a shared key's gradient adds up over its tiles."""
        q, k, v = ctx.saved_tensors
        wide = accumulate_dtype(q)
        grad_q = torch.empty_like(q)
        # Keys that tiles share get a gradient from each; a bfloat16 sum over many would lose its small terms.
        grad_k, grad_v = (torch.zeros_like(x, dtype=wide) if ctx.shared else torch.empty_like(x) for x in (k, v))
        grad_output = grad_output.contiguous()
        for tile in ctx.tiles:
            tq, tk, tv, upstream = _queries(q, tile), _keys(k, tile), _keys(v, tile), _queries(grad_output, tile)
            if tile.own is not None:
                upstream = _own_only(upstream, tile)
            part_q, part_k, part_v = _tile_gradients(tq, tk, tv, upstream, tile, ctx.how)
            _put_queries(grad_q, part_q, tile)
            for grad, part in ((grad_k, part_k), (grad_v, part_v)):
                (_add_keys if ctx.shared else _put_keys)(grad, part, tile)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None, None


def _tile_gradients(
    q: Tensor, k: Tensor, v: Tensor, upstream: Tensor, tile: Tile, how: _Scores
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one tile: q and upstream `[B * G, (L - f) * R, D]`, k and v `[B * G, L, D]`, the last two wide."""
    together = q.shape[1] // (tile.length - tile.first)
    grad_q = torch.empty_like(q)
    grad_k, grad_v = (torch.zeros_like(x, dtype=accumulate_dtype(q)) for x in (k, v))  # blocks add up
    for block in _blocks(tile, together, how.window, q):
        bq, g, seen = q[:, block.queries], upstream[:, block.queries], block.keys
        p, slope = _probabilities(bq, k[:, seen], block.mask, how)
        grad_v[:, seen] += torch.bmm(p.transpose(1, 2), g)
        grad_p = torch.bmm(g, v[:, seen].transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype).mul_(how.scale)
        if slope is not None:
            grad_scores.mul_(slope)
        grad_k[:, seen] += torch.bmm(grad_scores.transpose(1, 2), bq)
        torch.bmm(grad_scores, k[:, seen], out=grad_q[:, block.queries])
    return grad_q, grad_k, grad_v


def _keys(x: Tensor, tile: Tile) -> Tensor:
    """`[M * G, D]` -> `[B * G, L, D]`."""
    return x.index_select(0, tile.keys).view(-1, tile.length, x.shape[-1])


def _queries(x: Tensor, tile: Tile) -> Tensor:
    """`[M * G, R, D]` -> `[B * G, (L - f) * R, D]`."""
    return x.index_select(0, tile.queries).view(-1, (tile.length - tile.first) * x.shape[1], x.shape[2])


def _put_queries(target: Tensor, part: Tensor, tile: Tile) -> None:
    """The inverse of `_queries`: over all tiles every row of `target` is written once."""
    rows = part.view(-1, *target.shape[1:])
    if tile.own is None:
        target.index_copy_(0, tile.queries, rows)
    else:
        target.index_copy_(0, tile.queries[tile.own], rows[tile.own])


def _put_keys(target: Tensor, part: Tensor, tile: Tile) -> None:
    """The inverse of `_keys` where no token is shared: queries and keys are the same rows."""
    _put_queries(target, part.to(target.dtype), tile)


def _add_keys(target: Tensor, part: Tensor, tile: Tile) -> None:
    """Into rows that other sequences have too. Padding has no gradient and adds none."""
    rows = part.view(-1, target.shape[1])
    target.scatter_add_(0, tile.keys[:, None].expand_as(rows), rows)


def _own_only(upstream: Tensor, tile: Tile) -> Tensor:
    """Queries that are padding or another sequence's: their share of the gradient must not be counted again."""
    keep = upstream.new_zeros(tile.queries.numel())
    keep[tile.own] = 1
    return upstream.view(tile.queries.numel(), -1).mul_(keep[:, None]).view_as(upstream)
