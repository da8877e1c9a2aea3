"""samples/step-NNNNNN.parquet: every sample of a step, enough to read it and to replay it without an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from raylign.data.types import Completion, FinishReason, Reward, RewardOutcome, RolloutGroup, SampleKey, Turn
from raylign.records.atomic import partial_path, publish

SCHEMA = pa.schema(
    [
        pa.field("epoch", pa.int64(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("k", pa.int32(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("response_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("rollout_logprobs", pa.list_(pa.float64()), nullable=False),
        pa.field("min_policy_version", pa.int64(), nullable=False),
        pa.field("max_policy_version", pa.int64(), nullable=False),
        pa.field("temperature", pa.float64(), nullable=False),
        pa.field("reward", pa.float64()),  # null: see reward_failure
        pa.field("reward_components", pa.map_(pa.string(), pa.float64())),
        pa.field("reward_failure", pa.string()),  # null: the reward was had
        pa.field("advantage", pa.float64()),  # mean over the response; null: the sample was not trained on
        pa.field("finish_reason", pa.string(), nullable=False),
        # of an environment's episode, else null: what was said, and [start, end) of the response ids that it wrote
        pa.field("turns", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        pa.field("holes", pa.list_(pa.list_(pa.int32()))),
    ]
)


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One sample, as the file holds it."""

    key: SampleKey
    prompt: str
    response: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    rollout_logprobs: tuple[float, ...]
    min_policy_version: int
    max_policy_version: int
    temperature: float
    reward: float | None
    reward_components: Mapping[str, float]
    reward_failure: str | None
    advantage: float | None
    finish_reason: FinishReason
    turns: tuple[Turn, ...] = ()
    holes: tuple[tuple[int, int], ...] = ()


def sample_rows(
    groups: Sequence[RolloutGroup], outcomes: Sequence[RewardOutcome], advantages: Mapping[SampleKey, float]
) -> list[SampleRow]:
    """Join a step's completions with their rewards and advantages by sample key.

    `advantages` is the mean over each sample's response and holds trained samples only. Raises ValueError when a
    completion has no outcome, an outcome no completion, or a key appears twice.
    """
    by_key = {outcome.key: outcome for outcome in outcomes}
    keys = [completion.key for group in groups for completion in group.completions]
    if len(by_key) != len(outcomes) or len(set(keys)) != len(keys) or by_key.keys() != set(keys):
        odd = sorted(by_key.keys() ^ set(keys))[:3]
        raise ValueError(f"{len(keys)} samples and {len(outcomes)} rewards do not pair one to one; unpaired: {odd}")
    return [
        _row(group, completion, by_key[completion.key], advantages.get(completion.key))
        for group in groups
        for completion in group.completions
    ]


def _row(group: RolloutGroup, completion: Completion, outcome: RewardOutcome, advantage: float | None) -> SampleRow:
    scored = outcome if isinstance(outcome, Reward) else None
    return SampleRow(
        key=completion.key,
        prompt=group.prompt.text,
        response=completion.text,
        prompt_ids=group.prompt.token_ids,
        response_ids=completion.response_ids,
        rollout_logprobs=completion.rollout_logprobs,
        min_policy_version=completion.min_policy_version,
        max_policy_version=completion.max_policy_version,
        temperature=group.sampling.temperature,
        reward=scored.score if scored else None,
        reward_components=dict(scored.components) if scored else {},
        reward_failure=None if isinstance(outcome, Reward) else outcome.reason,
        advantage=advantage,
        finish_reason=completion.finish_reason,
        turns=completion.episode.turns if completion.episode else (),
        holes=completion.episode.holes if completion.episode else (),
    )


def write_samples(path: Path, rows: Sequence[SampleRow]) -> None:
    """Write one step's samples, whole or not at all."""
    records = [
        {
            "epoch": row.key.epoch,
            "prompt_id": row.key.prompt_id,
            "k": row.key.k,
            "prompt": row.prompt,
            "response": row.response,
            "prompt_ids": row.prompt_ids,
            "response_ids": row.response_ids,
            "rollout_logprobs": row.rollout_logprobs,
            "min_policy_version": row.min_policy_version,
            "max_policy_version": row.max_policy_version,
            "temperature": row.temperature,
            "reward": row.reward,
            "reward_components": list(row.reward_components.items()),
            "reward_failure": row.reward_failure,
            "advantage": row.advantage,
            "finish_reason": row.finish_reason.value,
            "turns": [turn._asdict() for turn in row.turns] or None,
            "holes": row.holes if row.turns else None,
        }
        for row in rows
    ]
    partial = partial_path(path)
    pq.write_table(pa.Table.from_pylist(records, schema=SCHEMA), partial, compression="zstd")
    publish(partial, path)


def read_samples(path: Path) -> list[SampleRow]:
    """Read a file of `write_samples` back, equal to what was written."""
    return [
        SampleRow(
            key=SampleKey(record["epoch"], record["prompt_id"], record["k"]),
            prompt=record["prompt"],
            response=record["response"],
            prompt_ids=tuple(record["prompt_ids"]),
            response_ids=tuple(record["response_ids"]),
            rollout_logprobs=tuple(record["rollout_logprobs"]),
            min_policy_version=record["min_policy_version"],
            max_policy_version=record["max_policy_version"],
            temperature=record["temperature"],
            reward=record["reward"],
            reward_components=dict(record["reward_components"]),
            reward_failure=record["reward_failure"],
            advantage=record["advantage"],
            finish_reason=FinishReason(record["finish_reason"]),
            turns=tuple(Turn(turn["role"], turn["content"]) for turn in record["turns"] or ()),
            holes=tuple((start, end) for start, end in record["holes"] or ()),
        )
        for record in pq.read_table(path, schema=SCHEMA).to_pylist()
    ]
