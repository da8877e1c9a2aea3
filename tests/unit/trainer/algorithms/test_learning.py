"""Each objective, run for real on a problem whose answer is known, moves the right way."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from raylign.conf.schema import OldLogprobs
from raylign.data.batching import shard
from raylign.data.types import (
    CriticExperience,
    Denominators,
    PairBatch,
    PolicyExperience,
    ScoredBatch,
    TokenBatch,
    TokenOutputs,
    ValueEstimates,
)
from raylign.trainer.algorithms.base import ActorCriticAlgorithm, LossOutput, OnlineAlgorithm
from raylign.trainer.algorithms.grpo import GRPO, GRPOConfig
from raylign.trainer.algorithms.ppo import PPO, PPOConfig
from raylign.trainer.algorithms.reinforce_pp import ReinforcePP, ReinforcePPConfig
from raylign.trainer.algorithms.rloo import RLOO, RLOOConfig
from raylign.trainer.algorithms.rm import RewardModelling, RMConfig
from torch import Tensor

ARMS, LENGTH, PROMPTS, SAMPLES = 4, 3, 8, 8


@dataclass
class Bandit:
    """A policy that is a table: the arm of each of LENGTH turns. The score counts the turns that chose arm 2."""

    logits: Tensor  # [LENGTH, ARMS]
    values: Tensor  # [LENGTH], the critic
    gen: torch.Generator

    def tokens(self, arms: Tensor) -> TokenBatch:
        count = arms.shape[0]
        return TokenBatch.from_sequences(
            [[0, *row] for row in arms.tolist()], [[False] + [True] * LENGTH for _ in range(count)]
        )

    def outputs(self, tokens: TokenBatch) -> TokenOutputs:
        arms = tokens.input_ids.view(-1, LENGTH + 1)[:, 1:]
        log_p = self.logits.log_softmax(-1).expand(arms.shape[0], -1, -1)
        chosen = log_p.gather(2, arms[..., None]).squeeze(2)
        pad = torch.nn.functional.pad
        entropy = -(log_p.exp() * log_p).sum(-1)
        mask = tokens.response_mask
        first = pad(chosen == log_p.amax(-1), (1, 0)).reshape(-1) & mask
        return TokenOutputs(pad(chosen, (1, 0)).reshape(-1) * mask, pad(entropy, (1, 0)).reshape(-1) * mask, first)

    def value_estimates(self, tokens: TokenBatch) -> Tensor:
        one = torch.nn.functional.pad(self.values, (1, 0))
        return one.repeat(tokens.num_sequences) * tokens.response_mask

    def step(self, algorithm: OnlineAlgorithm, *, kl_coef: float, seed: int) -> float:
        arms = torch.multinomial(
            self.logits.detach().softmax(-1).repeat(PROMPTS * SAMPLES, 1), 1, generator=self.gen
        ).view(-1, LENGTH)
        tokens, scores = self.tokens(arms), (arms == 2).sum(1).float()
        logprobs = self.outputs(tokens).logprobs.detach()
        uniform = torch.where(tokens.response_mask, -torch.tensor(float(ARMS)).log(), 0.0)
        estimates = ValueEstimates(self.value_estimates(tokens).detach(), torch.zeros(len(arms)))
        scored = ScoredBatch(
            tokens, torch.arange(PROMPTS).repeat_interleave(SAMPLES), scores, torch.zeros(len(arms)).bool(),
            logprobs, uniform, estimates,
        )  # fmt: skip
        estimate = algorithm.estimate(scored, kl_coef=kl_coef)
        experience = PolicyExperience(tokens, logprobs, logprobs, uniform, estimate.advantages)
        self._update(algorithm, experience, kl_coef, seed)
        if estimate.returns is not None:
            self._update_critic(algorithm, CriticExperience(tokens, estimates.values, estimate.returns), seed)
        return float(scores.mean())

    def _update(self, algorithm: OnlineAlgorithm, experience: PolicyExperience, kl_coef: float, seed: int) -> None:
        shards = shard(experience, num_ranks=2, units_per_update=32, micro_batch_tokens=40, seed=seed, epochs=2)
        for windows in zip(*(s.windows for s in shards), strict=True):
            loss = sum(
                algorithm.policy_loss(self.outputs(m.tokens), m, w.denominators, kl_coef=kl_coef).loss
                for w in windows
                for m in w.micro_batches
            )
            (grad,) = torch.autograd.grad(loss, self.logits)
            with torch.no_grad():
                self.logits -= 1.0 * grad

    def _update_critic(self, algorithm: ActorCriticAlgorithm, experience: CriticExperience, seed: int) -> None:
        (rank,) = shard(experience, num_ranks=1, units_per_update=32, micro_batch_tokens=40, seed=seed)
        for window in rank.windows:
            loss = sum(
                algorithm.value_loss(self.value_estimates(m.tokens), m, window.denominators).loss
                for m in window.micro_batches
            )
            (grad,) = torch.autograd.grad(loss, self.values)
            with torch.no_grad():
                self.values -= 0.5 * grad


ALGORITHMS: dict[str, OnlineAlgorithm] = {
    "ppo": PPO(PPOConfig()),
    "ppo, engine log-probs": PPO(PPOConfig(old_logprobs=OldLogprobs.engine)),
    "grpo": GRPO(GRPOConfig()),
    "rloo": RLOO(RLOOConfig()),
    "reinforce_pp": ReinforcePP(ReinforcePPConfig()),
    "reinforce_pp, baseline": ReinforcePP(ReinforcePPConfig(group_baseline=True, kl_in_loss=True)),
}


def _bandit(seed: int) -> Bandit:
    return Bandit(
        torch.zeros(LENGTH, ARMS, requires_grad=True),
        torch.zeros(LENGTH, requires_grad=True),
        torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_reward_rises(name: str) -> None:
    bandit = _bandit(0)
    scores = [bandit.step(ALGORITHMS[name], kl_coef=0.01, seed=i) for i in range(40)]
    assert scores[0] < 1.2  # chance is 0.75
    assert sum(scores[-5:]) / 5 > 2.5  # of 3
    if name.startswith("ppo"):
        truth = bandit.logits.detach().softmax(-1)[:, 2].sum()  # the score comes at the end: the same at every turn
        assert (bandit.values.detach() - truth).abs().max() < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_dear_kl_keeps_the_policy_at_the_reference(name: str) -> None:
    """With KL priced well above what any turn can earn, a policy that starts elsewhere returns to uniform."""
    bandit = _bandit(0)
    with torch.no_grad():
        bandit.logits[:, 1] = 1.5
    for i in range(60):
        bandit.step(ALGORITHMS[name], kl_coef=10.0, seed=i)
    spread = bandit.logits.detach().softmax(-1)
    assert (spread - 1 / ARMS).abs().max() < 0.25
    assert spread[:, 1].mean() < 0.45  # it was 0.6


def test_entropy_bonus_flattens_the_policy() -> None:
    bandit = _bandit(0)
    with torch.no_grad():
        bandit.logits[:, 1] = 3.0
    before = float(bandit.logits.detach().softmax(-1)[:, 1].mean())
    for i in range(20):
        bandit.step(PPO(PPOConfig(entropy_coef=5.0)), kl_coef=0.0, seed=i)
    assert float(bandit.logits.detach().softmax(-1)[:, 1].mean()) < before - 0.3


@pytest.mark.slow
def test_reward_model_separates_separable_pairs() -> None:
    gen = torch.Generator().manual_seed(0)
    truth = torch.randn(8, generator=gen)
    features = torch.randn(800, 2, 8, generator=gen)
    wrong = (features[:, 0] @ truth) < (features[:, 1] @ truth)
    features[wrong] = features[wrong].flip(1)
    tokens = TokenBatch.from_sequences([[i] for i in range(1600)], [[True]] * 1600)  # a token is a row of features
    train = PairBatch(tokens.select(range(1200)), torch.zeros(600), torch.ones(600))
    held_out = PairBatch(tokens.select(range(1200, 1600)), torch.zeros(200), torch.ones(200))
    weight = torch.zeros(8, requires_grad=True)
    algorithm = RewardModelling(RMConfig(centering_coef=0.01))

    def output(pairs: PairBatch, denominators: Denominators) -> LossOutput:
        return algorithm.loss(features.view(-1, 8)[pairs.tokens.input_ids] @ weight, pairs, denominators)

    for epoch in range(12):
        for window in shard(train, num_ranks=1, units_per_update=40, micro_batch_tokens=30, seed=epoch)[0].windows:
            loss = sum(output(m, window.denominators).loss for m in window.micro_batches)
            (grad,) = torch.autograd.grad(loss, weight)
            with torch.no_grad():
                weight -= 0.5 * grad
    accuracy = output(held_out, Denominators(400, 400)).metrics["accuracy"]
    scores = (features[600:] @ weight).detach()
    assert float(accuracy.total) == int((scores[:, 0] > scores[:, 1]).sum())
    assert float(accuracy.total / accuracy.count) > 0.95
