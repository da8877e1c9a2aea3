"""The plan of a forward pass: what is computed, once, and where every token finds its state."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raylign.data.types import TokenBatch
from raylign.trainer.functional.packing import MIN_SAVED, pack


def _batch(rows: list[list[int]]) -> TokenBatch:
    return TokenBatch.from_sequences(rows, [[False] * len(row) for row in rows])


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12))
def test_each_history_is_computed_once_and_found_by_every_token_that_has_it(rows: list[list[int]]) -> None:
    packing = pack(_batch(rows), min_saved=0.0)
    histories = [tuple(row[: t + 1]) for row in rows for t in range(len(row))]
    computed = [histories[t] for t in packing.tokens.tolist()]
    assert sorted(computed) == sorted(set(histories))
    assert [computed[row] for row in packing.rows.tolist()] == histories
    assert packing.positions.tolist() == [len(history) - 1 for history in computed]
    assert sum(path.length - path.first for path in packing.paths) == len(computed)
    assert packing.shared == (len(computed) < len(histories))


def test_a_plain_batch_is_computed_as_it_lies() -> None:
    packing = pack(_batch([[1, 2, 3], [4, 5], [6]]))
    assert packing.tokens.tolist() == packing.rows.tolist() == list(range(6))
    assert packing.positions.tolist() == [0, 1, 2, 0, 1, 0]
    assert not packing.shared


def test_a_beginning_that_all_texts_have_is_shared_only_where_it_is_some_of_the_work() -> None:
    first = round(4 * 64 * MIN_SAVED / 3)  # of 4 texts, 3 would be spared it
    rows = torch.arange(4 * 64).view(4, 64)
    for common, shared in ((first - 1, False), (first + 1, True)):
        rows[:, :common] = -1
        assert pack(_batch(rows.tolist())).shared is shared
