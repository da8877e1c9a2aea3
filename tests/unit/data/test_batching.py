"""The batch plan: every unit once, balanced, in step, and cheap over epochs."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raylign.data.batching import ShardPlan, plan_forward, plan_shards, shard
from raylign.data.types import PairBatch, PolicyExperience, RankShard, TokenBatch
from raylign.data.work import UnitWork, tokens_together


def _alone(lengths: list[int]) -> list[UnitWork]:
    """Units that share nothing."""
    return [UnitWork(u, 0, length) for u, length in enumerate(lengths)]


def _families(prompts: list[tuple[int, list[int]]]) -> list[UnitWork]:
    """Units of (prompt tokens, tokens of each answer), those of all families taken in turn."""
    units = [(k, UnitWork(f, prompt, n)) for f, (prompt, answers) in enumerate(prompts) for k, n in enumerate(answers)]
    return [unit for _, unit in sorted(units, key=lambda u: u[0])]


_lengths = st.lists(st.integers(1, 60), min_size=1, max_size=40)
_groups = st.lists(
    st.tuples(st.integers(1, 40), st.lists(st.integers(0, 30), min_size=1, max_size=8)), min_size=1, max_size=8
)
_plans = st.fixed_dictionaries(
    {
        "work": st.one_of(_lengths.map(_alone), _groups.map(_families)),
        "num_ranks": st.integers(1, 4),
        "units_per_update": st.integers(1, 20),
        "micro_batch_tokens": st.integers(1, 120),
        "seed": st.integers(0, 99),
    }
)


@settings(deadline=None)  # a busy machine is no failure
@given(_plans)
def test_plan_holds_every_unit_once_within_budget_and_in_step(p: dict) -> None:
    plan = plan_shards(**p)
    work, budget = p["work"], p["micro_batch_tokens"]

    def tokens(units: Iterable[int]) -> int:
        return tokens_together(work[u] for u in units)

    assert sorted(u for w in plan.windows for u in w.units) == list(range(len(work)))
    sizes = [len(w.units) for w in plan.windows]
    assert all(size == p["units_per_update"] for size in sizes[:-1])
    assert plan.last_window_units == (0 if sizes[-1] == p["units_per_update"] else sizes[-1])
    for window in plan.windows:
        assert len(window.ranks) == p["num_ranks"]
        assert len({len(rank) for rank in window.ranks}) == 1
        assert Counter(u for rank in window.ranks for m in rank for u in m) == Counter(window.units)
        assert any(micro for rank in window.ranks for micro in [rank[-1]])  # no round in which all ranks idle
        for rank in window.ranks:
            loads = [tokens(micro) for micro in rank]
            assert loads == sorted(loads, reverse=True)
            assert all(load <= budget or len(micro) == 1 for load, micro in zip(loads, rank, strict=True))
        loads = [sum(tokens(micro) for micro in rank) for rank in window.ranks]
        singles = [tokens([u]) for u in window.units]
        if len({work[u].family for u in window.units}) == len(window.units):
            assert max(loads) - min(loads) <= max(singles)
        assert max(loads) <= sum(singles) / len(loads) + max(singles)  # never worse than when nothing were shared
    assert plan.num_fillers == sum(not m for w in plan.windows for rank in w.ranks for m in rank)


@settings(deadline=None)  # a busy machine is no failure
@given(_plans)
def test_windows_do_not_depend_on_ranks_or_micro_batches(p: dict) -> None:
    alone = plan_shards(**(p | {"num_ranks": 1, "micro_batch_tokens": 10**6}))
    assert [w.units for w in plan_shards(**p).windows] == [w.units for w in alone.windows]


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.one_of(st.just([]), _lengths.map(_alone), _groups.map(_families)),
    st.integers(1, 4),
    st.integers(1, 120),
)
def test_forward_plan_holds_every_item_once(work: list[UnitWork], num_ranks: int, budget: int) -> None:
    plan = plan_forward(work, num_ranks=num_ranks, micro_batch_tokens=budget)
    assert len(plan) == num_ranks
    micro_batches = [micro for rank in plan for micro in rank]
    assert all(micro_batches)
    assert sorted(i for micro in micro_batches for i in micro) == list(range(len(work)))
    assert all(tokens_together(work[i] for i in m) <= budget or len(m) == 1 for m in micro_batches)


def test_tokens_are_balanced_over_ranks() -> None:
    plan = plan_shards(
        _alone([900, 500, 500, 400, 300, 200, 100, 100]),
        num_ranks=2,
        units_per_update=8,
        micro_batch_tokens=1000,
        seed=0,
    )
    assert plan.token_imbalance == 1.0
    assert [len(rank) for rank in plan.windows[0].ranks] == [2, 2]
    assert plan.num_fillers == 0


def _cost(plan: ShardPlan, work: list[UnitWork]) -> int:
    return sum(tokens_together(work[u] for u in m) for w in plan.windows for rank in w.ranks for m in rank)


def test_samples_of_a_prompt_run_together_when_they_fit() -> None:
    work = _families([(80, [64] * 8)] * 4)
    settings = {"num_ranks": 1, "units_per_update": 32, "seed": 3}
    for budget, micro_batches in ((2400, 1), (1200, 2), (600, 4)):
        plan = plan_shards(work, micro_batch_tokens=budget, **settings)
        assert (_cost(plan, work), len(plan.windows[0].ranks[0])) == (4 * (80 + 8 * 64), micro_batches)
    plan = plan_shards(work, micro_batch_tokens=400, **settings)  # half a group
    assert (_cost(plan, work), len(plan.windows[0].ranks[0])) == (4 * (2 * 80 + 8 * 64), 8)


def test_a_group_is_split_where_a_rank_would_idle() -> None:
    work = _families([(80, [64] * 8)])
    plan = plan_shards(work, num_ranks=4, units_per_update=8, micro_batch_tokens=4000, seed=0)
    assert plan.token_imbalance == 1.0
    assert _cost(plan, work) == 4 * (80 + 2 * 64)


def _experience(masks: list[list[bool]]) -> PolicyExperience:
    tokens = TokenBatch.from_sequences([[s] * len(m) for s, m in enumerate(masks)], masks)
    zeros = torch.zeros(tokens.num_tokens)
    return PolicyExperience(tokens, zeros, zeros, None, zeros)


def _trained(shards: list[RankShard[PolicyExperience]], window: int) -> list[int]:
    """Sequences with something to train in one window over all ranks (token ids are sequence numbers)."""
    micro_batches = [m for s in shards for m in s.windows[window].micro_batches]
    return sorted({int(i) for m in micro_batches for i in m.tokens.input_ids[m.tokens.response_mask]})


def test_denominators_count_the_window_over_all_ranks() -> None:
    masks = [[False, True], [False, True, True], [False, False], [False, True, True, True]]
    shards = shard(_experience(masks), num_ranks=3, units_per_update=4, micro_batch_tokens=4, seed=1)
    for s in shards:
        assert len(s.windows) == 1
        assert (s.windows[0].denominators.tokens, s.windows[0].denominators.sequences) == (6.0, 3.0)
    assert _trained(shards, 0) == [0, 1, 3]


def test_more_ranks_than_sequences_run_fillers_that_train_nothing() -> None:
    shards = shard(_experience([[False, True]]), num_ranks=3, units_per_update=8, micro_batch_tokens=4, seed=1)
    counts = [int(m.tokens.response_mask.sum()) for s in shards for m in s.windows[0].micro_batches]
    assert counts == [1, 0, 0]


def test_epochs_reuse_the_windows_in_another_order() -> None:
    experience = _experience([[False, True]] * 12)
    shards = shard(experience, num_ranks=2, units_per_update=2, micro_batch_tokens=99, seed=5, epochs=3)
    for s in shards:
        passes = [s.windows[e * 6 : (e + 1) * 6] for e in range(3)]
        assert {id(w) for w in passes[0]} == {id(w) for w in passes[1]} == {id(w) for w in passes[2]}
        assert [id(w) for w in passes[0]] != [id(w) for w in passes[1]] != [id(w) for w in passes[2]]
    again = shard(experience, num_ranks=2, units_per_update=2, micro_batch_tokens=99, seed=5, epochs=3)
    assert [_trained(again, w) for w in range(18)] == [_trained(shards, w) for w in range(18)]
    for w in range(18):  # both ranks are at the same window at the same time
        assert len(_trained(shards, w)) == 2
    assert len(pickle.dumps(shards[0])) < 1.2 * len(pickle.dumps(RankShard(shards[0].windows[:6])))


def test_same_seed_same_order_other_seed_another() -> None:
    work = _alone([3] * 32)
    settings = {"num_ranks": 2, "units_per_update": 8, "micro_batch_tokens": 12}
    assert plan_shards(work, seed=1, **settings) == plan_shards(work, seed=1, **settings)
    assert plan_shards(work, seed=1, **settings) != plan_shards(work, seed=2, **settings)


def test_pairs_stay_together() -> None:
    tokens = TokenBatch.from_sequences([[i] * (i + 1) for i in range(8)], [[True] * (i + 1) for i in range(8)])
    pairs = PairBatch(tokens, torch.zeros(4), torch.ones(4))
    shards = shard(pairs, num_ranks=3, units_per_update=4, micro_batch_tokens=16, seed=0)
    real = [m for s in shards for m in s.windows[0].micro_batches if m.weight.any()]
    firsts = [int(m.tokens.input_ids[c]) for m in real for c in m.tokens.cu_seqlens[:-1]]
    assert sorted(zip(firsts[::2], firsts[1::2], strict=True)) == [(0, 1), (2, 3), (4, 5), (6, 7)]


def test_what_a_pair_begins_with_is_counted_once_and_no_further_than_its_prompt() -> None:
    rows = [[1, 2, 3, 7, 8], [1, 2, 3, 7, 9, 9], [1, 2, 5, 6], [1, 2, 4, 6]]
    masks = [[False] * 3 + [True] * (len(row) - 3) for row in rows]
    pairs = PairBatch(TokenBatch.from_sequences(rows, masks), torch.zeros(2), torch.ones(2))
    assert pairs.units() == [UnitWork((1, 2, 3), 3, 5), UnitWork((1, 2), 2, 4)]


def test_nothing_to_train_on_is_refused() -> None:
    settings = {"num_ranks": 1, "units_per_update": 1, "micro_batch_tokens": 8, "seed": 0}
    with pytest.raises(ValueError, match="no sequence to train on"):
        plan_shards([], **settings)
    with pytest.raises(ValueError, match="has a token to train on"):
        shard(_experience([[False, True], [False, False]]), **settings)
    with pytest.raises(ValueError, match="units_per_update is 0"):
        plan_shards(_alone([3]), **(settings | {"units_per_update": 0}))
