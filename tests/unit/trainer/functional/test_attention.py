"""Packed attention against the definition, sequence by sequence in float64, alone and with shared beginnings."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raylign.data.types import TokenBatch
from raylign.trainer.functional.attention import BLOCK_QUERIES, packed_causal_attention
from raylign.trainer.functional.packing import Packing, pack, segments
from raylign.trainer.functional.tiles import MAX_PADDING, plan_tiles
from torch import Tensor

HEADS, GROUPS, DIM, VALUE_DIM = 6, 2, 8, 5


def definition(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """Of one sequence `[T, H or G, D]`, one head at a time; queries may be only the last of its tokens."""
    heads = []
    for head in range(HEADS):
        group = head * GROUPS // HEADS
        scores = scale * q[:, head] @ k[:, group].T
        i, j = torch.arange(len(k) - len(q), len(k))[:, None], torch.arange(len(k))[None, :]
        hidden = (j > i) | (j <= i - window) if window else j > i
        heads.append(scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v[:, group])
    return torch.stack(heads, 1)


def sequences(lengths: list[int], beginning: int = 0, group: int = 1) -> TokenBatch:
    """Random tokens; runs of `group` sequences begin with the same `beginning` of them."""
    rng, rows = random.Random(0), []
    for s, length in enumerate(lengths):
        if s % group == 0:
            prompt = [rng.randrange(10**9) for _ in range(beginning)]
        rows.append((prompt + [rng.randrange(10**9) for _ in range(length)])[:length])
    return TokenBatch.from_sequences(rows, [[False] * length for length in lengths])


def inputs(packing: Packing, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys and values of the tokens that are computed."""
    m = packing.tokens.numel()
    generator = torch.Generator().manual_seed(m)
    shapes = [(m, HEADS, DIM), (m, GROUPS, DIM), (m, GROUPS, VALUE_DIM)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def truth(q: Tensor, k: Tensor, v: Tensor, tokens: TokenBatch, packing: Packing, window: int | None) -> Tensor:
    """`[N, H, E]`: every sequence with copies of its tokens."""
    parts = [x[packing.rows].split(tokens.lengths.tolist()) for x in (q, k, v)]
    return torch.cat([definition(*part, 0.3, window) for part in zip(*parts, strict=True)])


CASES = {
    "one token": sequences([1]),
    "alike": sequences([9, 9, 9]),
    "padded together, and not": sequences([40, 37, 1, 39, 2, 36]),
    "around a block": sequences([BLOCK_QUERIES, BLOCK_QUERIES + 1, BLOCK_QUERIES - 1]),
    "blocks": sequences([3 * BLOCK_QUERIES + 7, 3 * BLOCK_QUERIES, 5]),
    "pairs": sequences([30, 21, 12, 40, 9, 9], beginning=8, group=2),
    "a group": sequences([90, 85, 88, 120, 71, 70], beginning=69, group=6),
    "prompts of more than a block": sequences([200, 170, 140, 133], beginning=BLOCK_QUERIES * 2 + 3, group=2),
    "one is all of another's beginning": sequences([20, 35, 20, 20], beginning=20, group=4),
    "one token in common": sequences([4, 6, 1, 9], beginning=1, group=4),
    "branches": TokenBatch.from_sequences(
        [[1, 2, 3, 4, 5], [1, 2, 3, 4, 9, 9], [1, 2, 7], [1, 2, 7, 7, 7], [8, 8], [1]], 
        [[False] * n for n in (5, 6, 3, 5, 2, 1)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_definition(name: str, window: int | None) -> None:
    tokens = CASES[name]
    packing = pack(tokens, min_saved=0.0)
    ours, plain = inputs(packing), inputs(packing)
    upstream = torch.randn(tokens.num_tokens, HEADS, VALUE_DIM, dtype=torch.float64)
    found = packed_causal_attention(*ours, packing, scale=0.3, window=window)[packing.rows]
    expected = truth(*plain, tokens, packing, window)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("window", [None, 5])
def test_a_soft_cap_is_the_definition_in_values_and_gradients(window: int | None) -> None:
    """c tanh(x / c) on the scores before the mask (Gemma 2), written out in float64."""
    tokens = sequences([30, 21, 12])
    packing = pack(tokens, min_saved=0.0)
    ours, plain = inputs(packing), inputs(packing)
    found = packed_causal_attention(*ours, packing, scale=0.3, window=window, softcap=0.7)
    parts = []
    for q, k, v in zip(*(x.split([30, 21, 12]) for x in plain), strict=True):
        wide_k, wide_v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        scores = 0.7 * torch.tanh(torch.einsum("qhd,khd->hqk", q, wide_k) * 0.3 / 0.7)
        ahead = torch.arange(len(q))[None, :] - torch.arange(len(q))[:, None]
        hidden = ahead > 0 if window is None else (ahead > 0) | (ahead <= -window)
        parts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), wide_v))
    expected = torch.cat(parts)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad((found * upstream).sum(), ours),
        torch.autograd.grad((expected * upstream).sum(), plain),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_segments_for_a_kernel_with_fewer_queries_than_keys_are_the_same_attention(name: str) -> None:
    tokens = CASES[name]
    packing = pack(tokens, min_saved=0.0)
    q, k, v = (x.detach() for x in inputs(packing))
    parts = segments(packing)
    queries, keys = parts.query_bounds.diff().tolist(), parts.key_bounds.diff().tolist()
    split = [q.split(queries), k[parts.key_rows].split(keys), v[parts.key_rows].split(keys)]
    found = torch.cat([definition(*part, 0.3, None) for part in zip(*split, strict=True)])
    torch.testing.assert_close(found[packing.rows], truth(q, k, v, tokens, packing, None), atol=1e-12, rtol=1e-12)
    assert (parts.most_queries, parts.most_keys) == (max(queries), max(keys))


@pytest.mark.parametrize("beginning", [0, 85])
def test_bfloat16_stays_as_close_to_the_truth_as_torchs_own_kernel(beginning: int) -> None:
    tokens = sequences([90, 200], beginning=beginning, group=2)
    packing = pack(tokens)
    q, k, v = (x.detach() for x in inputs(packing, torch.bfloat16))
    exact = truth(q.double(), k.double(), v.double(), tokens, packing, None)
    ours = packed_causal_attention(q, k, v, packing, scale=0.3)[packing.rows]
    parts = [x[packing.rows].transpose(0, 1)[None].split([90, 200], 2) for x in (q, k, v)]
    torchs = torch.cat(
        [
            torch.nn.functional.scaled_dot_product_attention(*p, is_causal=True, scale=0.3, enable_gqa=True)
            for p in zip(*parts, strict=True)
        ],
        2,
    )[0].transpose(0, 1)
    assert (ours - exact).square().mean().sqrt() < 2 * (torchs - exact).square().mean().sqrt()


def test_a_bfloat16_prompt_gets_the_sum_of_its_answers_gradients_without_losing_the_small_ones() -> None:
    tokens = sequences([40] * 64, beginning=30, group=64)
    packing = pack(tokens)
    wide = inputs(packing)
    rounded = [x.detach().bfloat16().requires_grad_() for x in wide]
    exact = [x.detach().bfloat16().double().requires_grad_() for x in wide]
    for x in (rounded, exact):
        packed_causal_attention(*x, packing, scale=0.3)[packing.rows].sum().backward()
    for mine, theirs in zip(rounded[1:], exact[1:], strict=True):  # keys and values
        assert float((mine.grad - theirs.grad).norm() / theirs.grad.norm()) < 0.01


@given(st.lists(st.integers(1, 300), min_size=1, max_size=30), st.integers(0, 40), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_every_token_is_computed_by_one_tile_and_tiles_waste_little(
    lengths: list[int], beginning: int, group: int
) -> None:
    packing = pack(sequences(lengths, beginning, group), min_saved=0.0)
    seen: list[int] = []
    for tile in plan_tiles(packing, 1):
        own = tile.queries if tile.own is None else tile.queries[tile.own]
        seen += own.tolist()
        assert tile.queries.numel() - own.numel() <= MAX_PADDING * tile.queries.numel()
    assert sorted(seen) == list(range(packing.tokens.numel()))
