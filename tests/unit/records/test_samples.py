"""Samples files: what is written is what is read, and nothing pairs by accident."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from raylign.data.types import (
    Completion,
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
    Turn,
    VersionSpan,
)
from raylign.records.samples import read_samples, sample_rows, write_samples

HOSTILE = "</script>\u2028<b>\x00 \U0001f600 ünï\ttab\r\n"


def step() -> tuple[list[RolloutGroup], list[RewardOutcome], dict[SampleKey, float]]:
    groups = []
    for p in range(3):
        prompt = Prompt(f"p{p}", (Message("system", "s"), Message("user", f"question {p}")), (1, 2, 3 + p))
        completions = tuple(
            Completion(
                key=SampleKey(2, prompt.prompt_id, k),
                response_ids=tuple(range(k)),  # k = 0: an empty answer
                rollout_logprobs=tuple(-0.1 * (i + 1) / 3 for i in range(k)),
                finish_reason=FinishReason.LENGTH if k % 2 else FinishReason.STOP,
                versions=(VersionSpan(4, 0, k // 2), VersionSpan(5, k // 2, k)),
                text=HOSTILE * k,
                episode=Episode(((0, 1),), ((1, 0.5),), (Turn("assistant", HOSTILE), Turn("tool", "")))
                if k > 1
                else None,
            )
            for k in range(3)
        )
        groups.append(RolloutGroup(prompt, SamplingParams(0.7, 8), completions))
    keys = [c.key for g in groups for c in g.completions]
    outcomes: list[RewardOutcome] = [Reward(key, i / 7, {"model": -i / 3, "brief": 1.0}) for i, key in enumerate(keys)]
    outcomes[4] = RewardFailure(keys[4], "reward server: timeout")
    return groups, outcomes, {key: 0.1 * i for i, key in enumerate(keys) if i != 4}


def test_round_trip_is_equal(tmp_path: Path) -> None:
    rows = sample_rows(*step())
    path = tmp_path / "step-000010.parquet"
    write_samples(path, rows)
    assert read_samples(path) == rows
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_failed_reward_is_null_and_named_never_zero() -> None:
    row = sample_rows(*step())[4]
    assert row.reward is None and row.advantage is None and row.reward_components == {}
    assert row.reward_failure == "reward server: timeout"


def test_outcomes_are_joined_by_key_whatever_their_order() -> None:
    groups, outcomes, advantages = step()
    assert sample_rows(groups, outcomes[::-1], advantages) == sample_rows(groups, outcomes, advantages)


def test_missing_doubled_or_foreign_outcomes_are_refused() -> None:
    groups, outcomes, advantages = step()
    foreign = Reward(SampleKey(9, "p0", 0), 1.0, {})
    for wrong in (outcomes[:-1], [*outcomes[:-1], outcomes[0]], [*outcomes[:-1], foreign], [*outcomes, foreign]):
        with pytest.raises(ValueError, match="pair one to one"):
            sample_rows(groups, wrong, advantages)
    doubled = replace(groups[0], completions=(groups[0].completions[0],) * 3)
    with pytest.raises(ValueError, match="pair one to one"):
        sample_rows([doubled, *groups[1:]], outcomes, advantages)


def test_columns_are_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write_samples(path, sample_rows(*step()))
    assert pq.read_schema(path).names == [
        "epoch", "prompt_id", "k", "prompt", "response", "prompt_ids", "response_ids", "rollout_logprobs",
        "min_policy_version", "max_policy_version", "temperature", "reward", "reward_components", "reward_failure",
        "advantage", "finish_reason", "turns", "holes",
    ]  # fmt: skip
