"""Tokens that an environment wrote between sampled ones change nothing but positions, in every algorithm.

The truth is the same step with those tokens taken out: what is sampled, scored and known of it being equal, so are
advantages, returns, losses and figures.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from raylign.conf.errors import RunFailed
from raylign.data.batching import shard
from raylign.data.experience import Experience, StageOutputs, assemble, engine_logprobs, pack_groups
from raylign.data.types import (
    Completion,
    Denominators,
    Episode,
    FinishReason,
    Message,
    Prompt,
    Reward,
    RewardFailure,
    RewardOutcome,
    RolloutGroup,
    SampleKey,
    SamplingParams,
    TokenBatch,
    TokenOutputs,
    Turn,
    ValueEstimates,
    VersionSpan,
)
from raylign.reward.shaping import EMPTY_STATE, Response, Shaping, shape
from raylign.trainer.algorithms.base import OnlineAlgorithm
from raylign.trainer.algorithms.grpo import GRPO, GRPOConfig
from raylign.trainer.algorithms.ppo import PPO, PPOConfig
from raylign.trainer.algorithms.reinforce_pp import ReinforcePP, ReinforcePPConfig
from raylign.trainer.algorithms.rloo import RLOO, RLOOConfig
from torch import Tensor

ALGORITHMS: dict[str, OnlineAlgorithm] = {
    "ppo": PPO(PPOConfig(gamma=0.9, gae_lambda=0.8)),
    "grpo": GRPO(GRPOConfig(importance_cap=1.5)),
    "rloo": RLOO(RLOOConfig(whiten=True)),
    "reinforce_pp": ReinforcePP(ReinforcePPConfig(gamma=0.9, whiten=True)),
}
HOLE = 99  # the token of every hole


def _completion(rng: random.Random, key: SampleKey) -> Completion:
    """Two to four turns, tokens of an environment between them; a reward for each turn, on its last token."""
    ids: list[int] = []
    logprobs: list[float] = []
    holes, rewards, versions = [], [], []
    for turn in range(rng.randint(2, 4)):
        if turn:
            size = rng.randint(1, 5)
            holes.append((len(ids), len(ids) + size))
            ids += [HOLE] * size
            logprobs += [0.0] * size
        start = len(ids)
        ids += [rng.randrange(90) for _ in range(rng.randint(1, 6))]
        logprobs += [-rng.random() for _ in ids[start:]]
        versions.append(VersionSpan(3 + turn, start, len(ids)))
        rewards.append((len(ids) - 1, rng.uniform(-1, 1)))
    episode = Episode(tuple(holes), tuple(rewards), (Turn("assistant", ""),))
    finish = rng.choice((FinishReason.STOP, FinishReason.LENGTH))
    return Completion(key, tuple(ids), tuple(logprobs), finish, tuple(versions), "", episode)


def _closed(answer: Completion) -> Completion:
    """Without the holes."""
    own, episode = answer.sampled, answer.episode
    assert episode is not None
    number = [sum(own[:t]) for t in range(len(own) + 1)]
    return replace(
        answer,
        response_ids=tuple(t for t, mine in zip(answer.response_ids, own, strict=True) if mine),
        rollout_logprobs=tuple(p for p, mine in zip(answer.rollout_logprobs, own, strict=True) if mine),
        versions=tuple(VersionSpan(span.version, number[span.start], number[span.end]) for span in answer.versions),
        episode=replace(episode, holes=(), rewards=tuple((number[t], value) for t, value in episode.rewards)),
    )


def _groups() -> list[RolloutGroup]:
    rng = random.Random(11)
    sampling = SamplingParams(temperature=1.0, max_new_tokens=40)
    return [
        RolloutGroup(
            Prompt(f"p{g}", (Message("user", "?"),), tuple(range(1, 4 + g))),
            sampling,
            tuple(_completion(rng, SampleKey(0, f"p{g}", k)) for k in range(3)),
        )
        for g in range(4)
    ]


def _with(groups: Sequence[RolloutGroup], change: object) -> list[RolloutGroup]:
    return [replace(g, completions=tuple(change(c) for c in g.completions)) for g in groups]  # type: ignore[operator]


def _outcomes(groups: Sequence[RolloutGroup], normalize: bool = False) -> list[RewardOutcome]:
    """As reward/scorer.py makes them, one of them failed."""
    raw: list[RewardOutcome] = []
    for answer in (c for g in groups for c in g.completions):
        assert answer.episode is not None
        rewards, last = answer.episode.rewards, len(answer.response_ids) - 1
        steps = tuple((t, value) for t, value in rewards if t != last)
        raw.append(Reward(answer.key, sum(value for _, value in rewards), {}, steps))
    raw[4] = RewardFailure(raw[4].key, "the environment: late")
    responses = [Response(1, False)] * len(raw)
    return shape(raw, responses, Shaping(normalize, 0.0, 0.0), EMPTY_STATE)[0]


def _drawn(tokens: TokenBatch, seed: int) -> Tensor:
    """Numbers for the sampled tokens, the same whatever lies between them."""
    generator = torch.Generator().manual_seed(seed)
    own = tokens.response_mask
    values = torch.randn(int(own.sum()), generator=generator)
    return torch.zeros(tokens.num_tokens).masked_scatter(own, values)


def _assembled(name: str, groups: Sequence[RolloutGroup], outcomes: Sequence[RewardOutcome]) -> Experience:
    tokens = pack_groups(groups)
    sizes = [pack_groups([g]).num_tokens for g in groups]
    bootstrap = torch.randn(tokens.num_sequences, generator=torch.Generator().manual_seed(9)).split([3] * len(groups))
    estimates = [ValueEstimates(v, b) for v, b in zip(_drawn(tokens, 3).split(sizes), bootstrap, strict=True)]
    stages = StageOutputs(
        [(engine_logprobs(groups) + 0.1 * _drawn(tokens, 1))[a : a + n] for a, n in _spans(sizes)],
        [(engine_logprobs(groups) + 0.2 * _drawn(tokens, 2))[a : a + n] for a, n in _spans(sizes)],
        estimates if name == "ppo" else None,
    )
    return assemble(groups, outcomes, stages, ALGORITHMS[name], kl_coef=0.1)


def _spans(sizes: Sequence[int]) -> list[tuple[int, int]]:
    return [(sum(sizes[:i]), size) for i, size in enumerate(sizes)]


def _losses(name: str, found: Experience) -> tuple[float, list[float]]:
    """The policy loss and its gradient on the sampled tokens' log-probs; their sum over uneven micro-batches."""
    algorithm, total, grads = ALGORITHMS[name], 0.0, []
    [piece] = shard(found.policy, num_ranks=1, micro_batch_tokens=60, units_per_update=11, epochs=1, seed=0)
    for window in piece.windows:
        for batch in window.micro_batches:
            own = batch.tokens.response_mask
            now = batch.rollout_logprobs.clone()
            now.requires_grad_()
            outputs = TokenOutputs(now, torch.zeros_like(now), own)
            counted: Denominators = window.denominators
            loss = algorithm.policy_loss(outputs, batch, counted, kl_coef=0.1).loss
            loss.backward()
            total += float(loss.detach())
            assert now.grad is not None
            assert not bool(now.grad[~own].any()), "a token of the environment has a gradient"
            grads += now.grad[own].tolist()
    return total, sorted(grads)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_holes_change_nothing_but_positions(name: str):
    groups = _groups()
    closed = _with(groups, _closed)
    open_step = _assembled(name, groups, _outcomes(groups))
    closed_step = _assembled(name, closed, _outcomes(closed))

    own, all_own = open_step.policy.tokens.response_mask, closed_step.policy.tokens.response_mask
    assert not bool((open_step.policy.tokens.input_ids == HOLE)[own].any())
    assert torch.equal(open_step.policy.advantages[own], closed_step.policy.advantages[all_own])
    assert not bool(open_step.policy.advantages[~own].any())
    assert open_step.advantages == closed_step.advantages
    if name == "ppo":
        assert open_step.critic is not None and closed_step.critic is not None
        assert torch.equal(open_step.critic.returns[own], closed_step.critic.returns[all_own])
    told = {k: v for k, v in open_step.metrics.items() if k not in ("rollout/environment_tokens", "rollout/repetition")}
    assert {k: closed_step.metrics[k] for k in told} == pytest.approx(told, nan_ok=True)
    assert open_step.mean_kl == pytest.approx(closed_step.mean_kl)
    loss, grads = _losses(name, open_step)
    closed_loss, closed_grads = _losses(name, closed_step)
    assert loss == pytest.approx(closed_loss, rel=1e-5, abs=1e-7) and grads == pytest.approx(
        closed_grads, rel=1e-5, abs=1e-9
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_training_on_a_hole_would_be_seen(name: str):
    """The bug planted: the mask that a step without environments has."""
    groups = _groups()
    outcomes = [replace(o, steps=()) if isinstance(o, Reward) else o for o in _outcomes(groups)]
    right = _assembled(name, groups, outcomes)
    wrong = _assembled(name, _with(groups, lambda c: replace(c, episode=None)), outcomes)

    assert bool((wrong.policy.tokens.input_ids == HOLE)[wrong.policy.tokens.response_mask].any())
    assert wrong.metrics["rollout/response_length"] > right.metrics["rollout/response_length"]
    own = right.policy.tokens.response_mask
    assert not torch.allclose(wrong.policy.advantages[own], right.policy.advantages[own]) or name == "grpo"
    assert _losses(name, wrong)[0] != pytest.approx(_losses(name, right)[0], rel=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_each_reward_lies_on_its_token_and_they_sum_to_the_score(normalize: bool):
    """REINFORCE++ without whitening, KL or decay: a token's advantage is what was still to come, by a plain loop."""
    groups = _groups()
    outcomes = _outcomes(groups, normalize)
    tokens = pack_groups(groups)
    algorithm = ReinforcePP(ReinforcePPConfig(gamma=1.0, whiten=False))
    stages = StageOutputs([engine_logprobs([g]) for g in groups], None, None)
    found = assemble(groups, outcomes, stages, algorithm, kl_coef=0.0)

    expected: list[float] = []
    for group, outcome in zip((g for g in groups for _ in g.completions), outcomes, strict=True):
        if not isinstance(outcome, Reward):
            continue
        answer = next(c for c in group.completions if c.key == outcome.key)
        received = {
            **dict(outcome.steps),
            len(answer.response_ids) - 1: outcome.score - sum(v for _, v in outcome.steps),
        }
        for t, mine in enumerate(answer.sampled):
            if mine:
                expected.append(sum(value for at, value in received.items() if at >= t))
    assert found.policy.advantages[found.policy.tokens.response_mask].tolist() == pytest.approx(expected, abs=1e-6)
    assert tokens.num_sequences == len(outcomes)


def test_a_reward_on_a_token_that_was_not_sampled_ends_the_run_in_words():
    groups = _groups()
    outcomes = _outcomes(groups)
    first = groups[0].completions[0]
    assert first.episode is not None and isinstance(outcomes[0], Reward)
    outcomes[0] = replace(outcomes[0], steps=((first.episode.holes[0][0], 1.0),))
    with pytest.raises(RunFailed, match="not a sampled one"):
        _assembled("ppo", groups, outcomes)


def test_versions_and_masks_leave_the_holes_out():
    answer = _groups()[0].completions[0]
    assert answer.episode is not None
    spans = [t for span in answer.versions for t in range(span.start, span.end)]
    assert [t for t, own in enumerate(answer.sampled) if own] == spans
    tokens = sum(span.end - span.start for span in answer.versions)
    truth = sum(span.version * (span.end - span.start) for span in answer.versions) / tokens
    assert answer.mean_policy_version == pytest.approx(truth)
    assert engine_logprobs(_groups())[~pack_groups(_groups()).response_mask].eq(0).all()
