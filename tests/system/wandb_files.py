"""Reads back what W&B's offline folders of a run hold: the log format of LevelDB, records in W&B's own protobuf."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

HEADER, BLOCK, CHUNK_HEADER = 7, 32768, 7
WHOLE, FIRST, LAST = 1, 2, 4


def records(path: Path) -> Iterator[Record]:
    """Up to the first that is not whole: a writer that was killed leaves half of one."""
    content, at, parts = path.read_bytes(), HEADER, b""
    while at + CHUNK_HEADER <= len(content):
        if BLOCK - at % BLOCK < CHUNK_HEADER:
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        chunk = content[at + CHUNK_HEADER : at + CHUNK_HEADER + size]
        at += CHUNK_HEADER + size
        if len(chunk) < size or not kind:
            return
        parts = chunk if kind in (WHOLE, FIRST) else parts + chunk
        if kind in (WHOLE, LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record


def drawn(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> its numbers as all lives of a run have told them to W&B, the later one over the earlier."""
    steps: dict[int, dict[str, float]] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for record in records(path):
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            if "train/global_step" in items:
                step = int(items.pop("train/global_step"))
                told = {name: value for name, value in items.items() if isinstance(value, float | int)}
                steps.setdefault(step, {}).update(told)
    return steps


def ending(life: Path) -> tuple[int, bool]:
    """Exit code of one W&B folder's life, and whether it was marked as one that can be resumed."""
    (path,) = life.glob("run-*.wandb")
    found = list(records(path))
    (code,) = (record.exit.exit_code for record in found if record.WhichOneof("record_type") == "exit")
    return code, any(record.WhichOneof("record_type") == "preempting" for record in found)
