"""journal/step-000007.batch: what a step trains on, on disk before it is trained, so that it can be trained again.

A parquet table, one row a prompt, followed by the 32 bytes of its sha256. Numbers are kept to the last bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
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
from raylign.records.atomic import write_atomic

_DIGEST_BYTES = 32
_SCHEMA = pa.schema(
    [
        pa.field("epoch", pa.int64()),
        pa.field("prompt", pa.string()),  # JSON
        pa.field("k", pa.list_(pa.int32())),
        pa.field("response_ids", pa.list_(pa.list_(pa.int32()))),
        pa.field("logprobs", pa.list_(pa.list_(pa.float64()))),
        pa.field("finish", pa.list_(pa.string())),
        pa.field("versions", pa.list_(pa.list_(pa.list_(pa.int64())))),
        pa.field("text", pa.list_(pa.string())),
        pa.field("outcomes", pa.list_(pa.string())),  # JSON, raw: before shaping
        pa.field("episodes", pa.list_(pa.string())),  # JSON; null: one turn
    ]
)


class JournalError(ValueError):
    """A batch that cannot be read back; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's samples with their raw rewards."""

    step: int
    settings: str  # digest of everything that decides what a step computes
    data: Mapping[str, int | str]  # the prompts' position after this step
    filtered: tuple[SampleKey, ...]  # samples that left because their group's rewards were all equal
    groups: tuple[RolloutGroup, ...]
    outcomes: tuple[RewardOutcome, ...]  # one a completion, in the order of `groups`


def batch_file(folder: Path, step: int) -> Path:
    """Where the batch of a step lies."""
    return folder / f"step-{step:06d}.batch"


def write_batch(folder: Path, batch: Batch) -> None:
    """On disk, whole, when this returns. Raises OSError when it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = iter(batch.outcomes)
    rows = [_row(group, [next(outcomes) for _ in group.completions]) for group in batch.groups]
    about = {
        "step": batch.step,
        "settings": batch.settings,
        "data": dict(batch.data),
        "filtered": list(batch.filtered),
        "sampling": asdict(batch.groups[0].sampling),
    }
    schema = _SCHEMA.with_metadata({"batch": json.dumps(about)})
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    body = buffer.getvalue().to_pybytes()
    write_atomic(batch_file(folder, batch.step), body + hashlib.sha256(body).digest())


def read_batch(folder: Path, step: int) -> Batch:
    """As it was written. Raises JournalError when there is none, or it is damaged."""
    path = batch_file(folder, step)
    table = pq.read_table(pa.BufferReader(_whole(path)))
    about = json.loads(table.schema.metadata[b"batch"])
    given = about["sampling"]
    sampling = SamplingParams(
        **{**given, "stop": tuple(given["stop"]), "stop_token_ids": tuple(given["stop_token_ids"])}
    )
    rows = table.to_pylist()
    return Batch(
        step=about["step"],
        settings=about["settings"],
        data=about["data"],
        filtered=tuple(SampleKey(*key) for key in about["filtered"]),
        groups=tuple(_group(row, sampling) for row in rows),
        outcomes=tuple(_outcome(json.loads(text)) for row in rows for text in row["outcomes"]),
    )


def replayable(folder: Path, *, after: int, settings: str) -> tuple[int, Mapping[str, int | str] | None, str | None]:
    """Which steps can be trained again: the last of `after` + 1, ..., the prompts' position after it, and why no more.

    (`after`, None, None) when there is nothing to train again. Batches that were made under other settings, and
    whatever comes after a damaged one, are not used.
    """
    step, data = after, None
    while batch_file(folder, step + 1).exists():
        try:
            about = json.loads(pq.read_schema(pa.BufferReader(_whole(batch_file(folder, step + 1)))).metadata[b"batch"])
        except JournalError as error:
            return step, data, str(error)
        if about["settings"] != settings:
            return step, data, f"{batch_file(folder, step + 1).name} was made under other settings"
        step, data = step + 1, about["data"]
    return step, data, None


def retire(folder: Path, *, up_to: int) -> None:
    """Remove the batches of steps that no checkpoint goes back before."""
    for path in folder.glob("step-*.batch"):
        number = path.stem.removeprefix("step-")
        if number.isdigit() and int(number) <= up_to:
            path.unlink(missing_ok=True)


def void(folder: Path, *, after: int) -> None:
    """Remove the batches of a history that is not continued."""
    for path in folder.glob("step-*.batch"):
        number = path.stem.removeprefix("step-")
        if number.isdigit() and int(number) > after:
            path.unlink(missing_ok=True)


def _whole(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise JournalError(f"{path.name} cannot be read: {error.strerror}") from error
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise JournalError(f"{path.name} is damaged")
    return body


def _row(group: RolloutGroup, outcomes: Sequence[RewardOutcome]) -> dict[str, object]:
    answers = group.completions
    return {
        "epoch": answers[0].key.epoch,
        "prompt": json.dumps(asdict(group.prompt)),
        "k": [c.key.k for c in answers],
        "response_ids": [c.response_ids for c in answers],
        "logprobs": [c.rollout_logprobs for c in answers],
        "finish": [c.finish_reason.value for c in answers],
        "versions": [[list(span) for span in c.versions] for c in answers],
        "text": [c.text for c in answers],
        "outcomes": [json.dumps(asdict(outcome), default=float) for outcome in outcomes],
        "episodes": [None if c.episode is None else json.dumps(asdict(c.episode)) for c in answers],
    }


def _group(row: Mapping[str, Any], sampling: SamplingParams) -> RolloutGroup:
    given = json.loads(row["prompt"])
    prompt = Prompt(
        **{
            **given,
            "messages": tuple(Message(**message) for message in given["messages"]),
            "token_ids": tuple(given["token_ids"]),
            "teacher_ids": tuple(given.get("teacher_ids", ())),  # batches of earlier versions have none
        }
    )
    completions = tuple(
        Completion(
            key=SampleKey(row["epoch"], prompt.prompt_id, k),
            response_ids=tuple(row["response_ids"][i]),
            rollout_logprobs=tuple(row["logprobs"][i]),
            finish_reason=FinishReason(row["finish"][i]),
            versions=tuple(VersionSpan(*span) for span in row["versions"][i]),
            text=row["text"][i],
            episode=_episode(row["episodes"][i] if row.get("episodes") else None),  # older runs have none
        )
        for i, k in enumerate(row["k"])
    )
    return RolloutGroup(prompt, sampling, completions)


def _outcome(given: Mapping[str, Any]) -> RewardOutcome:
    key = SampleKey(*given["key"])
    if "reason" in given:
        return RewardFailure(key, given["reason"], given["unreadable"])
    return Reward(key, given["score"], given["components"], tuple((t, value) for t, value in given.get("steps", ())))


def _episode(text: str | None) -> Episode | None:
    if text is None:
        return None
    given = json.loads(text)
    return Episode(
        holes=tuple((start, end) for start, end in given["holes"]),
        rewards=tuple((token, value) for token, value in given["rewards"]),
        turns=tuple(Turn(*turn) for turn in given["turns"]),
        failure=given["failure"],
    )
