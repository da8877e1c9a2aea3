"""GAE, returns, token rewards and group baselines against plain loops and hand-computed numbers."""

from __future__ import annotations

import math
import random
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raylign.data.types import TokenBatch, ValueEstimates
from raylign.trainer.functional.advantages import (
    GroupStatistics,
    broadcast_to_tokens,
    discounted_returns,
    gae,
    group_relative,
    leave_one_out,
)
from raylign.trainer.functional.rewards import token_rewards
from raylign.trainer.functional.segments import last_trained, sequence_ids, sequence_sum, trained_tokens

_masks = st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=6)


def _batch(masks: list[list[bool]]) -> TokenBatch:
    return TokenBatch.from_sequences([[0] * len(m) for m in masks], masks)


def _off_mask_zero(rng: random.Random, tokens: TokenBatch) -> torch.Tensor:
    x = torch.tensor([rng.gauss(0, 1) for _ in range(tokens.num_tokens)], dtype=torch.float64)
    return torch.where(tokens.response_mask, x, 0)


def _slow_gae(
    rewards: list[float], values: list[float], mask: list[bool], bootstrap: float, gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """One sequence, one token after the other, from the end; `bootstrap` is 0 for a finished one."""
    advantages, returns = [0.0] * len(mask), [0.0] * len(mask)
    next_value, next_advantage = bootstrap, 0.0
    for t in reversed(range(len(mask))):
        if not mask[t]:
            continue
        next_advantage = rewards[t] + gamma * next_value - values[t] + gamma * lam * next_advantage
        next_value = values[t]
        advantages[t], returns[t] = next_advantage, next_advantage + values[t]
    return advantages, returns


@settings(deadline=None)  # a busy machine is no failure
@given(_masks, st.integers(0, 10**6), st.sampled_from([0.0, 0.9, 1.0]), st.sampled_from([0.0, 0.95, 1.0]))
def test_gae_and_returns_equal_the_loop(masks: list[list[bool]], seed: int, gamma: float, lam: float) -> None:
    rng, tokens = random.Random(seed), _batch(masks)
    rewards, values = _off_mask_zero(rng, tokens), _off_mask_zero(rng, tokens)
    bootstrap = torch.tensor([rng.gauss(0, 1) for _ in masks], dtype=torch.float64)
    truncated = torch.tensor([rng.random() < 0.5 for _ in masks])
    advantages, returns = gae(
        rewards, ValueEstimates(values, bootstrap), tokens, truncated, gamma=gamma, gae_lambda=lam
    )
    reward_to_go = discounted_returns(rewards, tokens, gamma=gamma)
    starts = tokens.cu_seqlens.tolist()
    for s, mask in enumerate(masks):
        span = slice(starts[s], starts[s + 1])
        beyond = float(bootstrap[s]) if truncated[s] else 0.0
        want = _slow_gae(rewards[span].tolist(), values[span].tolist(), mask, beyond, gamma, lam)
        assert advantages[span].tolist() == pytest.approx(want[0], abs=1e-12)
        assert returns[span].tolist() == pytest.approx(want[1], abs=1e-12)
        zeros = [0.0] * len(mask)
        want_return, _ = _slow_gae(rewards[span].tolist(), zeros, mask, 0.0, gamma, 1.0)
        assert reward_to_go[span].tolist() == pytest.approx(want_return, abs=1e-12)


def test_gae_by_hand_over_a_tool_answer() -> None:
    # prompt, two own tokens, a tool's token, one own token; gamma 0.5, lambda 0.5; finished
    tokens = _batch([[False, True, True, False, True]])
    values = torch.tensor([0.0, 1.0, 2.0, 0.0, 4.0], dtype=torch.float64)
    rewards = torch.tensor([0.0, 0.0, 0.0, 0.0, 8.0], dtype=torch.float64)
    estimates = ValueEstimates(values, torch.tensor([100.0]))
    advantages, returns = gae(rewards, estimates, tokens, torch.tensor([False]), gamma=0.5, gae_lambda=0.5)
    # last: 8 - 4 = 4; before the tool: 0.5*4 - 2 + 0.25*4 = 1; first: 0.5*2 - 1 + 0.25*1 = 0.25
    assert advantages.tolist() == [0, 0.25, 1, 0, 4]
    assert returns.tolist() == [0, 1.25, 3, 0, 8]
    cut, _ = gae(rewards, estimates, tokens, torch.tensor([True]), gamma=0.5, gae_lambda=0.5)
    assert cut.tolist() == [0, 0.25 + 50 / 16, 1 + 50 / 4, 0, 4 + 50]


def test_score_sits_on_the_last_response_token_less_the_kl() -> None:
    tokens = _batch([[False, True, True, False], [False, False], [True, False, True]])
    penalty = torch.full((9,), 0.25)
    scores = torch.tensor([1.0, 7.0, -2.0])
    assert token_rewards(scores, tokens, None).tolist() == [0, 0, 1, 0, 0, 0, 0, 0, -2]
    assert token_rewards(scores, tokens, penalty).tolist() == [0, -0.25, 0.75, 0, 0, 0, -0.25, 0, -2.25]


def test_segment_figures() -> None:
    tokens = _batch([[False, True, True, False], [False, False], [True, False, True]])
    assert sequence_ids(tokens).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert trained_tokens(tokens).tolist() == [2, 0, 2]
    assert sequence_sum(torch.arange(9.0), tokens).tolist() == [3, 0, 14]
    assert last_trained(tokens).nonzero()[:, 0].tolist() == [2, 8]
    assert broadcast_to_tokens(torch.tensor([1.0, 2.0, 3.0]), tokens).tolist() == [0, 1, 1, 0, 0, 0, 3, 0, 3]


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3)), min_size=1, max_size=14))
def test_group_baselines_equal_the_definition(samples: list[tuple[int, int]]) -> None:
    group = torch.tensor([g for g, _ in samples])
    scores = torch.tensor([float(r) for _, r in samples], dtype=torch.float64)
    stats = GroupStatistics.of(scores, group)
    centred = group_relative(scores, stats, scale_by_std=False)
    scaled = group_relative(scores, stats, scale_by_std=True)
    loo = leave_one_out(scores, stats)
    for i, (g, r) in enumerate(samples):
        members = [x for h, x in samples if h == g]
        others = [x for j, (h, x) in enumerate(samples) if h == g and j != i]
        if len(set(members)) == 1:  # of one, or all equal
            assert centred[i] == scaled[i] == loo[i] == 0  # whole numbers: no rounding
            continue
        mean = statistics.fmean(members)
        assert float(centred[i]) == pytest.approx(r - mean)
        assert float(scaled[i]) == pytest.approx((r - mean) / (statistics.stdev(members) + 1e-6))
        assert float(loo[i]) == pytest.approx(r - statistics.fmean(others))
    sets = {g: [x for h, x in samples if h == g] for g, _ in samples}
    assert stats.num_single == sum(len(v) == 1 for v in sets.values())
    assert stats.num_zero_variance == sum(len(v) > 1 and len(set(v)) == 1 for v in sets.values())


def test_equal_scores_give_exactly_nothing_though_their_float32_mean_rounds() -> None:
    scores = torch.full((7,), 0.1)
    stats = GroupStatistics.of(scores, torch.zeros(7, dtype=torch.int64))
    assert not group_relative(scores, stats, scale_by_std=True).any()
    assert not leave_one_out(scores, stats).any()
    assert math.isfinite(float(stats.std[0]))
