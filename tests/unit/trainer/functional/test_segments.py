"""Repetition against a count by hand of every run of tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raylign.data.types import TokenBatch
from raylign.trainer.functional.segments import repetition

_rows = st.lists(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=14), min_size=1, max_size=5)


def by_hand(ids: list[int], mask: list[bool], run: int) -> float:
    runs = [tuple(ids[i : i + run]) for i in range(len(ids) - run + 1) if all(mask[i : i + run])]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


@settings(deadline=None)
@given(_rows, st.integers(1, 4))
def test_repetition_is_a_count(rows: list[list[tuple[int, bool]]], run: int) -> None:
    tokens = TokenBatch.from_sequences([[i for i, _ in row] for row in rows], [[m for _, m in row] for row in rows])
    expected = [by_hand([i for i, _ in row], [m for _, m in row], run) for row in rows]
    assert repetition(tokens, run).tolist() == pytest.approx(expected, abs=1e-12)


def test_large_ids_and_prompts_count_alone() -> None:
    ids = [[151_935, 7, 151_935, 7, 151_935, 7, 151_935, 7], [5] * 8]
    tokens = TokenBatch.from_sequences(ids, [[True] * 8, [True] * 4 + [False] * 4])
    assert repetition(tokens).tolist() == pytest.approx([3 / 5, 0.0])
    assert repetition(TokenBatch.from_sequences([], [])).shape == torch.Size([0])
