"""Packed attention against the definition, sequence by sequence in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.functional.attention import BLOCK_QUERIES, MAX_PADDING, packed_causal_attention, plan_tiles

HEADS, GROUPS, DIM = 6, 2, 8


def reference(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scale: float, window: int | None) -> Tensor:
    """One score at a time is too slow; one head and sequence at a time is plain enough."""
    outputs, start = [], 0
    for length in lengths:
        rows = slice(start, start + length)
        heads = []
        for head in range(HEADS):
            group = head * GROUPS // HEADS
            scores = scale * q[rows, head] @ k[rows, group].T
            i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
            hidden = (j > i) | (j <= i - window) if window else j > i
            heads.append(scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v[rows, group])
        outputs.append(torch.stack(heads, 1))
        start += length
    return torch.cat(outputs)


def inputs(lengths: list[int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    n = sum(lengths)
    shapes = [(n, HEADS, DIM), (n, GROUPS, DIM), (n, GROUPS, DIM)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(
    "lengths",
    [
        [1],
        [9, 9, 9],
        [40, 37, 1, 39, 2, 36],  # padded together, and not
        [BLOCK_QUERIES, BLOCK_QUERIES + 1, BLOCK_QUERIES - 1],
        [3 * BLOCK_QUERIES + 7, 3 * BLOCK_QUERIES, 5],
    ],
)
def test_values_and_gradients_are_the_definition(lengths: list[int], window: int | None) -> None:
    ours, truth = inputs(lengths), inputs(lengths)
    upstream = torch.randn(sum(lengths), HEADS, DIM, dtype=torch.float64)
    found = packed_causal_attention(*ours, lengths, scale=0.3, window=window)
    expected = reference(*truth, lengths, 0.3, window)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for mine, theirs in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-11, rtol=1e-11)


def test_bfloat16_stays_as_close_to_the_truth_as_torchs_own_kernel() -> None:
    lengths = [90, 200]
    q, k, v = (x.detach() for x in inputs(lengths, torch.bfloat16))
    truth = reference(q.double(), k.double(), v.double(), lengths, 0.35, None)
    ours = packed_causal_attention(q, k, v, lengths, scale=0.35)
    parts = [x.transpose(0, 1)[None].split(lengths, 2) for x in (q, k, v)]
    torchs = torch.cat(
        [
            torch.nn.functional.scaled_dot_product_attention(*p, is_causal=True, scale=0.35, enable_gqa=True)
            for p in zip(*parts, strict=True)
        ],
        2,
    )[0].transpose(0, 1)
    assert (ours - truth).square().mean().sqrt() < 2 * (torchs - truth).square().mean().sqrt()


@given(st.lists(st.integers(1, 300), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_every_token_is_in_one_tile_and_tiles_waste_little(lengths: list[int]) -> None:
    seen: list[int] = []
    for tile in plan_tiles(tuple(lengths), 1, torch.device("cpu")):
        real = tile.rows if tile.real is None else tile.rows[tile.real]
        seen += real.tolist()
        assert tile.rows.numel() - real.numel() <= MAX_PADDING * tile.rows.numel()
    assert sorted(seen) == list(range(sum(lengths)))
