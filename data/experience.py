"""From finished rollouts, their rewards and the forward passes to what the updates train on. Pure.

A sample whose reward failed leaves here, before any statistic is taken: it is in no baseline, mean or batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from raylign.conf.errors import RunFailed
from raylign.data.types import (
    Completion,
    CriticExperience,
    FinishReason,
    PolicyExperience,
    Reward,
    RewardFailure,
    RewardOutcome,
    RolloutGroup,
    SampleKey,
    ScoredBatch,
    TokenBatch,
    ValueEstimates,
)
from raylign.trainer.algorithms.base import OnlineAlgorithm
from raylign.trainer.functional.segments import repetition, sequence_sum, trained_tokens
from torch import Tensor


@dataclass(frozen=True, slots=True)
class StageOutputs:
    """What the forward passes computed: one entry a group, in group order; None for a pass that did not run."""

    logprobs: Sequence[Tensor] | None  # of the policy before the update, [tokens of the group]
    ref_logprobs: Sequence[Tensor] | None  # [tokens of the group]
    estimates: Sequence[ValueEstimates] | None  # values [tokens of the group], bootstrap [samples of the group]


@dataclass(frozen=True, slots=True)
class Experience:
    """A whole step, ready to be cut into shards."""

    policy: PolicyExperience
    critic: CriticExperience | None
    advantages: Mapping[SampleKey, float]  # mean over the response; trained samples only
    metrics: Mapping[str, float]
    mean_kl: float  # nats a sequence; nan without a reference


def pack_groups(groups: Sequence[RolloutGroup]) -> TokenBatch:
    """Every completion as prompt and response, end to end, group by group; its sampled tokens are under the mask."""
    samples = [(g.prompt.token_ids, c) for g in groups for c in g.completions]
    return TokenBatch.from_sequences(
        [prompt + answer.response_ids for prompt, answer in samples],
        [[False] * len(prompt) + answer.sampled for prompt, answer in samples],
    )


def engine_logprobs(groups: Sequence[RolloutGroup]) -> Tensor:
    """The engine's log-probs aligned with `pack_groups`, `[N]` float32, zero on prompts and in holes."""
    flat: list[float] = []
    for group in groups:
        for completion in group.completions:
            if len(completion.rollout_logprobs) != len(completion.response_ids):
                raise RunFailed(
                    f"rollout, sample {completion.key}: {len(completion.response_ids)} tokens came with "
                    f"{len(completion.rollout_logprobs)} log-probs"
                )
            flat += [0.0] * len(group.prompt.token_ids)
            flat += [p if own else 0.0 for p, own in zip(completion.rollout_logprobs, completion.sampled, strict=True)]
    return torch.tensor(flat, dtype=torch.float32)


def assemble(
    groups: Sequence[RolloutGroup],
    outcomes: Sequence[RewardOutcome],
    stages: StageOutputs,
    algorithm: OnlineAlgorithm,
    *,
    kl_coef: float,
    own_logprobs: bool = False,
    mask_truncated: bool = False,
) -> Experience:
    """Drop failed samples, estimate advantages over the whole step, and gather its figures.

    `outcomes`: one a completion, in the order of `groups`. `own_logprobs`: the update's log-probs are its own old
    ones, and `stages` has none. `mask_truncated`: the policy is not trained on responses that were cut. Raises
    RunFailed when nothing is left, and when an input is not aligned with the samples or not finite.
    """
    keys = [c.key for g in groups for c in g.completions]
    if [o.key for o in outcomes] != keys:
        raise RunFailed(f"reward: {len(outcomes)} outcomes do not match the step's {len(keys)} samples one to one")
    rows = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Reward)]
    rewards = [outcome for outcome in outcomes if isinstance(outcome, Reward)]
    if not rewards:
        first = next((o.reason for o in outcomes if isinstance(o, RewardFailure)), "there were no samples")
        raise RunFailed(f"reward: none of the step's {len(keys)} samples has a score; first: {first}")
    batch, rollout_logprobs = _scored(groups, rows, rewards, stages)
    _check_masks(batch.tokens)
    estimate = algorithm.estimate(batch, kl_coef=kl_coef)
    lengths = trained_tokens(batch.tokens).clamp(min=1)
    means = (sequence_sum(estimate.advantages, batch.tokens) / lengths).tolist()
    old_logprobs = None if own_logprobs else batch.logprobs
    policy = PolicyExperience(batch.tokens, old_logprobs, rollout_logprobs, batch.ref_logprobs, estimate.advantages)
    if mask_truncated:
        policy = _finished(policy, batch.truncated)
    critic = None
    if batch.estimates is not None and estimate.returns is not None:
        critic = CriticExperience(batch.tokens, batch.estimates.values, estimate.returns)
    gap = {} if stages.logprobs is None else _gap_metrics(batch, rollout_logprobs)
    turns = _turn_metrics([answer for group in groups for answer in group.completions])
    mean_kl = math.nan
    if batch.ref_logprobs is not None:
        mean_kl = float(sequence_sum(batch.logprobs - batch.ref_logprobs, batch.tokens).mean())
    return Experience(
        policy=policy,
        critic=critic,
        advantages={reward.key: mean for reward, mean in zip(rewards, means, strict=True)},
        metrics={**_reward_metrics(rewards), **_rollout_metrics(batch), **turns, **gap, **estimate.metrics},
        mean_kl=mean_kl,
    )


def _finished(policy: PolicyExperience, truncated: Tensor) -> PolicyExperience:
    """Without the responses that were cut. Raises RunFailed when there is no other."""
    rows = (~truncated).nonzero().squeeze(1).tolist()
    if not rows:
        raise RunFailed(
            f"rollout: all {truncated.numel()} responses of the step were cut at rollout.max_new_tokens, and "
            "algorithm.mask_truncated=true trains none of them; raise rollout.max_new_tokens or set it to false"
        )
    return policy.select(rows)


def _scored(
    groups: Sequence[RolloutGroup], rows: Sequence[int], rewards: Sequence[Reward], stages: StageOutputs
) -> tuple[ScoredBatch, Tensor]:
    """The samples that have a reward, with everything known of them, and the engine's log-probs `[N]`."""
    packed = pack_groups(groups)
    index = packed.token_index(rows)
    kept = torch.tensor(list(rows), dtype=torch.int64)
    rollout_logprobs = engine_logprobs(groups)[index]
    group_of = [i for i, g in enumerate(groups) for _ in g.completions]
    truncated = [c.finish_reason is FinishReason.LENGTH for g in groups for c in g.completions]
    logprobs = _joined("policy log-probs", stages.logprobs, packed.num_tokens)
    ref_logprobs = _joined("reference log-probs", stages.ref_logprobs, packed.num_tokens)
    estimates = None
    if stages.estimates is not None:
        values = _join("values", [e.values for e in stages.estimates], packed.num_tokens)
        bootstrap = _join("bootstrap values", [e.bootstrap for e in stages.estimates], packed.num_sequences)
        estimates = ValueEstimates(values[index], bootstrap[kept])
    batch = ScoredBatch(
        tokens=packed.select(rows),
        group=torch.tensor(group_of, dtype=torch.int64)[kept],
        scores=torch.tensor([r.score for r in rewards], dtype=torch.float32),
        truncated=torch.tensor(truncated, dtype=torch.bool)[kept],
        logprobs=rollout_logprobs if logprobs is None else logprobs[index],
        ref_logprobs=None if ref_logprobs is None else ref_logprobs[index],
        estimates=estimates,
        early=_early(groups, rows, rewards),
    )
    return batch, rollout_logprobs


def _early(groups: Sequence[RolloutGroup], rows: Sequence[int], rewards: Sequence[Reward]) -> Tensor | None:
    """The parts of the scores that were received before the end, `[N]` of the kept samples; None when there are none.

    Raises RunFailed for a reward on a token that was not sampled.
    """
    if not any(reward.steps for reward in rewards):
        return None
    samples = [(g.prompt, c) for g in groups for c in g.completions]
    flat: list[float] = []
    for (prompt, completion), reward in zip((samples[row] for row in rows), rewards, strict=True):
        answer = [0.0] * len(completion.response_ids)
        own = completion.sampled
        for token, value in reward.steps:
            if not (0 <= token < len(answer) and own[token]):
                raise RunFailed(
                    f"reward, sample {reward.key}: a step's reward lies on token {token}, not a sampled one"
                )
            answer[token] += value
        flat += [0.0] * len(prompt.token_ids) + answer
    return torch.tensor(flat, dtype=torch.float32)


def _joined(what: str, parts: Sequence[Tensor] | None, size: int) -> Tensor | None:
    return None if parts is None else _join(what, parts, size)


def _join(what: str, parts: Sequence[Tensor], size: int) -> Tensor:
    """Raises RunFailed unless there are `size` finite numbers."""
    joined = torch.cat(list(parts)).float()
    if joined.numel() != size:
        raise RunFailed(f"{what}: {joined.numel()} numbers for {size} positions of the step")
    bad = int((~joined.isfinite()).sum())
    if bad:
        raise RunFailed(f"{what}: {bad} of {size} numbers are not finite; the step was not trained on")
    return joined


def _reward_metrics(rewards: Sequence[Reward]) -> dict[str, float]:
    scores = torch.tensor([r.score for r in rewards], dtype=torch.float64)
    components: dict[str, list[float]] = {}
    for reward in rewards:
        for name, value in reward.components.items():
            components.setdefault(name, []).append(value)
    return {
        "reward/mean": float(scores.mean()),
        "reward/std": float(scores.std(correction=0)),
        **{f"reward/{name}": sum(values) / len(values) for name, values in components.items()},
    }


def _rollout_metrics(batch: ScoredBatch) -> dict[str, float]:
    return {
        "rollout/response_length": float(trained_tokens(batch.tokens).float().mean()),
        "rollout/truncated_ratio": float(batch.truncated.float().mean()),
        "rollout/repetition": float(repetition(batch.tokens).mean()),
    }


def _turn_metrics(answers: Sequence[Completion]) -> dict[str, float]:
    """Of a step's episodes, those among them that failed too; nothing without an environment."""
    episodes = [answer.episode for answer in answers if answer.episode is not None]
    if not episodes:
        return {}
    said = [sum(turn.role == "assistant" for turn in episode.turns) for episode in episodes]
    read = [sum(end - start for start, end in episode.holes) for episode in episodes]
    return {
        "rollout/turns": sum(said) / len(episodes),
        "rollout/environment_tokens": sum(read) / len(episodes),
        "rollout/environment_failed": float(sum(bool(episode.failure) for episode in episodes)),
    }


def _gap_metrics(batch: ScoredBatch, rollout_logprobs: Tensor) -> dict[str, float]:
    """Absolute difference of engine and trainer over response tokens, nats. Only where the trainer recomputed them."""
    gap = (batch.logprobs - rollout_logprobs)[batch.tokens.response_mask].abs()
    return {"rollout/logprob_gap": float(gap.mean()), "rollout/logprob_gap_max": float(gap.max())}


def _check_masks(tokens: TokenBatch) -> None:
    """Raises RunFailed when a sample would train nothing, or its prompt too."""
    trained, lengths = trained_tokens(tokens), tokens.cu_seqlens.diff()
    wrong = int(((trained < 1) | (trained >= lengths)).sum())
    if wrong:
        raise RunFailed(f"rollout: {wrong} of {tokens.num_sequences} samples have an empty answer or an empty prompt")
