from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from raylign.conf.errors import RunFailed
from raylign.data.experience import StageOutputs, assemble, engine_logprobs, pack_groups
from raylign.data.types import (
    Completion,
    FinishReason,
    Message,
    Prompt,
    Reward,
    RewardFailure,
    RewardOutcome,
    RolloutGroup,
    SampleKey,
    SamplingParams,
    ValueEstimates,
    VersionSpan,
)
from raylign.trainer.algorithms.ppo import PPO, PPOConfig
from raylign.trainer.algorithms.rloo import RLOO, RLOOConfig

SAMPLING = SamplingParams(temperature=1.0, max_new_tokens=8)


def completion(prompt_id: str, k: int, response: Sequence[int], *, cut: bool = False) -> Completion:
    return Completion(
        key=SampleKey(0, prompt_id, k),
        response_ids=tuple(response),
        rollout_logprobs=tuple(-0.1 * (i + 1) for i in range(len(response))),
        finish_reason=FinishReason.LENGTH if cut else FinishReason.STOP,
        versions=(VersionSpan(3, 0, len(response)),),
        text="",
    )


def group(prompt_id: str, prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> RolloutGroup:
    return RolloutGroup(
        Prompt(prompt_id, (Message("user", prompt_id),), tuple(prompt)),
        SAMPLING,
        tuple(completion(prompt_id, k, r, cut=len(r) == 3) for k, r in enumerate(responses)),
    )


GROUPS = [group("a", (1, 2), ((10, 11), (12,))), group("b", (3,), ((13, 14, 15), (16, 17)))]
KEYS = [c.key for g in GROUPS for c in g.completions]


def stages(groups: Sequence[RolloutGroup], *, values: bool = False) -> StageOutputs:
    logprobs = [engine_logprobs([g]) * 2 for g in groups]
    ref = [engine_logprobs([g]) * 3 for g in groups]
    estimates = None
    if values:
        bootstraps = {"a": [1.0, 2.0], "b": [3.0, 4.0]}
        estimates = [
            ValueEstimates(engine_logprobs([g]) * 5, torch.tensor(bootstraps[g.prompt.prompt_id])) for g in groups
        ]
    return StageOutputs(logprobs, ref, estimates)


def scores(values: Sequence[float]) -> list[RewardOutcome]:
    return [Reward(k, v, {"taste": v / 2}) for k, v in zip(KEYS, values, strict=True)]


def test_packing_puts_each_engine_logprob_on_its_own_token() -> None:
    tokens, logprobs = pack_groups(GROUPS), engine_logprobs(GROUPS)
    assert tokens.input_ids.tolist() == [1, 2, 10, 11, 1, 2, 12, 3, 13, 14, 15, 3, 16, 17]
    assert tokens.cu_seqlens.tolist() == [0, 4, 7, 11, 14]
    assert torch.equal(tokens.response_mask, tokens.input_ids >= 10)
    assert torch.allclose(logprobs[8:11], torch.tensor([-0.1, -0.2, -0.3]))
    assert bool((logprobs[~tokens.response_mask] == 0).all())


def test_a_failed_reward_leaves_batch_and_baseline_instead_of_counting_as_zero() -> None:
    """Leave-one-out over three would be 1 - (4 + 0) / 2; over the two that have a score it is 1 - 4."""
    three = [group("a", (1,), ((10,), (11,), (12,)))]
    keys = [c.key for c in three[0].completions]
    outcomes: list[RewardOutcome] = [Reward(keys[0], 1.0, {}), RewardFailure(keys[1], "late"), Reward(keys[2], 4.0, {})]
    nothing = StageOutputs(None, None, None)
    done = assemble(three, outcomes, nothing, RLOO(RLOOConfig(kl_coef=0.0)), kl_coef=0.0)
    assert done.advantages == {keys[0]: -3.0, keys[2]: 3.0}
    assert done.policy.tokens.input_ids.tolist() == [1, 10, 1, 12]
    assert done.metrics["reward/mean"] == 2.5


def test_a_dropped_sample_takes_its_own_numbers_with_it() -> None:
    """Everything of the second group is the same whether the first group's samples are there or failed."""
    ppo = PPO(PPOConfig(whiten=False))
    failed: list[RewardOutcome] = [RewardFailure(KEYS[0], "x"), RewardFailure(KEYS[1], "x"), *scores([1, 2, 3, 4])[2:]]
    partial = assemble(GROUPS, failed, stages(GROUPS, values=True), ppo, kl_coef=0.1)
    alone = assemble(GROUPS[1:], scores([1, 2, 3, 4])[2:], stages(GROUPS[1:], values=True), ppo, kl_coef=0.1)
    assert torch.equal(partial.policy.advantages, alone.policy.advantages)
    assert torch.equal(partial.policy.old_logprobs, alone.policy.old_logprobs)
    assert partial.critic is not None and alone.critic is not None
    assert torch.equal(partial.critic.returns, alone.critic.returns)
    assert partial.metrics == alone.metrics
    assert partial.mean_kl == alone.mean_kl


def test_figures_of_the_step() -> None:
    done = assemble(GROUPS, scores([1, 2, 3, 6]), stages(GROUPS), RLOO(RLOOConfig()), kl_coef=0.0)
    assert done.metrics["reward/mean"] == 3.0
    assert done.metrics["reward/taste"] == 1.5
    assert done.metrics["reward/std"] == pytest.approx(math.sqrt(3.5))
    assert done.metrics["rollout/response_length"] == 2.0
    assert done.metrics["rollout/truncated_ratio"] == 0.25
    # Trainer log-probs are twice the engine's, so the gap is the engine's own magnitude: (3 + 1 + 6 + 3) / 10 over 8.
    assert done.metrics["rollout/logprob_gap"] == pytest.approx(1.3 / 8)
    assert done.metrics["rollout/logprob_gap_max"] == pytest.approx(0.3)
    # Policy minus reference is +0.1, 0.2, 0.3 a token: summed by sequence 0.3, 0.1, 0.6, 0.3.
    assert done.mean_kl == pytest.approx(1.3 / 4)


def test_trusted_engine_logprobs_become_the_old_ones_and_no_reference_means_no_kl() -> None:
    done = assemble(GROUPS, scores([1, 2, 3, 4]), StageOutputs(None, None, None), RLOO(RLOOConfig()), kl_coef=0.0)
    assert torch.equal(done.policy.old_logprobs, done.policy.rollout_logprobs)
    assert math.isnan(done.mean_kl)
    assert not [name for name in done.metrics if "logprob_gap" in name], "a gap nobody measured is absent, not 0"


def test_the_updates_own_logprobs_are_left_to_the_update() -> None:
    nothing = StageOutputs(None, None, None)
    done = assemble(GROUPS, scores([1, 2, 3, 4]), nothing, RLOO(RLOOConfig()), kl_coef=0.0, own_logprobs=True)
    assert done.policy.old_logprobs is None
    assert done.policy.select([0]).old_logprobs is None


def test_an_empty_answer_ends_the_run() -> None:
    empty = [group("a", (1, 2), ((10,), ()))]
    outcomes: list[RewardOutcome] = [Reward(c.key, 1.0, {}) for c in empty[0].completions]
    with pytest.raises(RunFailed, match="1 of 2 samples have an empty answer"):
        assemble(empty, outcomes, StageOutputs(None, None, None), RLOO(RLOOConfig()), kl_coef=0.0)


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ([RewardFailure(k, "the judge is late") for k in KEYS], r"none of the step's 4 samples.*the judge is late"),
        (scores([1, 2, 3, 4])[::-1], r"do not match"),
        (scores([1, 2, 3, 4])[:3], r"3 outcomes do not match the step's 4 samples"),
    ],
)
def test_outcomes_that_cannot_be_trained_on_end_the_run(outcomes: list[RewardOutcome], message: str) -> None:
    with pytest.raises(RunFailed, match=message):
        assemble(GROUPS, outcomes, StageOutputs(None, None, None), RLOO(RLOOConfig()), kl_coef=0.0)


def test_missing_and_non_finite_numbers_end_the_run() -> None:
    short = StageOutputs([engine_logprobs(GROUPS[:1])], None, None)
    with pytest.raises(RunFailed, match="policy log-probs: 7 numbers for 14 positions"):
        assemble(GROUPS, scores([1, 2, 3, 4]), short, RLOO(RLOOConfig()), kl_coef=0.0)
    broken = StageOutputs(None, [engine_logprobs(GROUPS) * math.nan], None)
    with pytest.raises(RunFailed, match="reference log-probs: 14 of 14 numbers are not finite"):
        assemble(GROUPS, scores([1, 2, 3, 4]), broken, RLOO(RLOOConfig()), kl_coef=0.0)
