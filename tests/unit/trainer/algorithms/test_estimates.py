"""From scores to advantages, algorithm by algorithm: by hand, and whatever the order of the samples."""

from __future__ import annotations

import math
import random
import statistics

import pytest
import torch
from raylign.conf.schema import KLEstimator
from raylign.data.types import ScoredBatch, TokenBatch, ValueEstimates
from raylign.trainer.algorithms.base import OnlineAlgorithm
from raylign.trainer.algorithms.grpo import GRPO, GRPOConfig
from raylign.trainer.algorithms.ppo import PPO, PPOConfig
from raylign.trainer.algorithms.reinforce_pp import ReinforcePP, ReinforcePPConfig
from raylign.trainer.algorithms.rloo import RLOO, RLOOConfig


def _small() -> ScoredBatch:
    """Two samples of prompt 0, one of prompt 1; one prompt token each; KL of 0.5 a response token."""
    masks = [[False, True, True], [False, True], [False, True, True]]
    tokens = TokenBatch.from_sequences([[0] * len(m) for m in masks], masks)
    mask = tokens.response_mask
    return ScoredBatch(
        tokens=tokens,
        group=torch.tensor([0, 0, 1]),
        scores=torch.tensor([3.0, 1.0, 5.0]),
        truncated=torch.tensor([False, False, True]),
        logprobs=torch.where(mask, -1.0, 0.0),
        ref_logprobs=torch.where(mask, -1.5, 0.0),
        estimates=ValueEstimates(torch.where(mask, 2.0, 0.0), torch.tensor([10.0, 10.0, 10.0])),
    )


def test_ppo_by_hand() -> None:
    config = PPOConfig(gamma=1.0, gae_lambda=0.5, whiten=False)
    estimate = PPO(config).estimate(_small(), kl_coef=0.2)
    # rewards: -0.1 a token, the score on the last; sample 2 was cut, so 10 follows its last state
    first = [-0.1 + 2 - 2 + 0.5 * 0.9, 2.9 - 2]
    second = [0.9 - 2]
    third = [-0.1 + 0 + 0.5 * 12.9, 4.9 + 10 - 2]
    assert estimate.advantages.tolist() == pytest.approx([0, *first, 0, *second, 0, *third])
    assert estimate.returns.tolist() == pytest.approx(
        [0, *(a + 2 for a in first), 0, *(a + 2 for a in second), 0, *(a + 2 for a in third)]
    )
    assert estimate.metrics["policy/kl"] == pytest.approx((1.0 + 0.5 + 1.0) / 3)
    assert estimate.metrics["critic/explained_variance"] == 0  # a constant critic
    white = PPO(PPOConfig(gamma=1.0, gae_lambda=0.5)).estimate(_small(), kl_coef=0.2).advantages
    values = [*first, *second, *third]
    want = [(a - statistics.fmean(values)) / statistics.pstdev(values) for a in values]
    assert white[_small().tokens.response_mask].tolist() == pytest.approx(want, rel=1e-5)


def test_grpo_by_hand() -> None:
    estimate = GRPO(GRPOConfig()).estimate(_small(), kl_coef=0.2)
    half = 1 / (math.sqrt(2) + 1e-6)
    assert estimate.advantages.tolist() == pytest.approx([0, half, half, 0, -half, 0, 0, 0])
    assert estimate.returns is None
    assert estimate.metrics["reward/single_sample_groups"] == 1
    assert estimate.metrics["reward/zero_variance_groups"] == 0
    plain = GRPO(GRPOConfig(scale_by_std=False)).estimate(_small(), kl_coef=0.2)
    assert plain.advantages.tolist() == [0, 1, 1, 0, -1, 0, 0, 0]


def test_rloo_by_hand() -> None:
    # scores less the KL of the whole response: 3 - 0.2 * 1 = 2.8 and 1 - 0.2 * 0.5 = 0.9
    estimate = RLOO(RLOOConfig()).estimate(_small(), kl_coef=0.2)
    assert estimate.advantages.tolist() == pytest.approx([0, 1.9, 1.9, 0, -1.9, 0, 0, 0])
    in_loss = RLOO(RLOOConfig(kl_in_loss=True)).estimate(_small(), kl_coef=0.2)
    assert in_loss.advantages.tolist() == pytest.approx([0, 2, 2, 0, -2, 0, 0, 0])


def test_reinforce_pp_by_hand() -> None:
    config = ReinforcePPConfig(whiten=False, gamma=0.5)
    estimate = ReinforcePP(config).estimate(_small(), kl_coef=0.2)
    assert estimate.advantages.tolist() == pytest.approx([0, -0.1 + 0.5 * 2.9, 2.9, 0, 0.9, 0, -0.1 + 0.5 * 4.9, 4.9])
    based = ReinforcePP(ReinforcePPConfig(whiten=False, group_baseline=True, kl_in_loss=True))
    assert based.estimate(_small(), kl_coef=0.2).advantages.tolist() == pytest.approx([0, 1, 1, 0, -1, 0, 0, 0])
    white = ReinforcePP(ReinforcePPConfig()).estimate(_small(), kl_coef=0.2).advantages
    kept = white[_small().tokens.response_mask]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-6) and float(kept.std(correction=0)) == pytest.approx(1)


def test_equal_scores_are_counted_though_their_kl_differs() -> None:
    batch = _small()
    batch.scores[:] = 1.0
    assert RLOO(RLOOConfig()).estimate(batch, kl_coef=0.2).metrics["reward/zero_variance_groups"] == 1


ALGORITHMS: list[OnlineAlgorithm] = [
    PPO(PPOConfig(gamma=0.97)),
    GRPO(GRPOConfig(kl_in_loss=False, kl_estimator=KLEstimator.k2)),
    RLOO(RLOOConfig(whiten=True)),
    ReinforcePP(ReinforcePPConfig(gamma=0.97, group_baseline=True)),
]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: type(a).__name__)
def test_order_of_samples_does_not_matter(algorithm: OnlineAlgorithm) -> None:
    rng, gen = random.Random(1), torch.Generator().manual_seed(1)
    masks = [[False] * rng.randint(1, 3) + [rng.random() < 0.8 for _ in range(rng.randint(1, 6))] for _ in range(9)]
    tokens = TokenBatch.from_sequences([[0] * len(m) for m in masks], masks)
    per_token = torch.randn(3, tokens.num_tokens, generator=gen) * tokens.response_mask
    group, scores = torch.tensor([0, 0, 0, 5, 5, 5, 2, 2, 9]), torch.randn(9, generator=gen)
    truncated, bootstrap = torch.rand(9, generator=gen) < 0.5, torch.randn(9, generator=gen)

    def batch(rows: list[int]) -> ScoredBatch:
        logprobs, ref, values = per_token[:, tokens.token_index(rows)]
        return ScoredBatch(
            tokens.select(rows), group[rows], scores[rows], truncated[rows], logprobs, ref,
            ValueEstimates(values, bootstrap[rows]),
        )  # fmt: skip

    rows = list(range(9))
    straight = algorithm.estimate(batch(rows), kl_coef=0.1)
    rng.shuffle(rows)
    shuffled = algorithm.estimate(batch(rows), kl_coef=0.1)
    index = tokens.token_index(rows)
    torch.testing.assert_close(shuffled.advantages, straight.advantages[index])
    if straight.returns is not None:
        torch.testing.assert_close(shuffled.returns, straight.returns[index])
    assert shuffled.metrics == pytest.approx(dict(straight.metrics), rel=1e-5)
    assert not shuffled.advantages[~tokens.response_mask[index]].any()


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: type(a).__name__)
def test_a_score_that_is_not_a_number_is_refused(algorithm: OnlineAlgorithm) -> None:
    batch = _small()
    batch.scores[1] = math.nan
    with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
        algorithm.estimate(batch, kl_coef=0.1)


def test_ppo_without_values_is_refused() -> None:
    batch = _small()
    without = ScoredBatch(
        batch.tokens, batch.group, batch.scores, batch.truncated, batch.logprobs, batch.ref_logprobs, None
    )
    with pytest.raises(ValueError, match="the critic did not run"):
        PPO(PPOConfig()).estimate(without, kl_coef=0.1)
