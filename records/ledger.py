"""ledger.jsonl: how every sample of an online run ended, by key (epoch, prompt, k). Only ever appended to.

    {"crc": "1c291ca3", "record": {"start": 2, "from_step": 4}}        a start, or a rebuild: later steps are void
    {"crc": "...", "record": {"step": 5, "trained": [...], ...}}      one finished step

A step that is done again after a crash stands here twice; the later one counts, because the weights that the earlier
one trained are gone. Each line is on disk before the step is reported anywhere else.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raylign.data.types import SampleKey

CUT = "cut by length (algorithm.mask_truncated)"
EQUAL = "all rewards of its prompt were equal"
"""Why a sample is filtered."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One finished step: its samples by outcome."""

    step: int
    trained: tuple[SampleKey, ...]
    filtered: Mapping[str, tuple[SampleKey, ...]]  # why -> samples that were left out on purpose
    failed: Mapping[str, tuple[SampleKey, ...]]  # why -> samples without a reward
    versions: tuple[int, int]  # of the weights that sampled them: oldest, newest
    data: Mapping[str, int | str]  # the prompts' position after this step

    def outcomes(self) -> list[tuple[SampleKey, str]]:
        """Every sample of the step with one word for its end."""
        left = [(key, "filtered") for keys in self.filtered.values() for key in keys]
        lost = [(key, "failed") for keys in self.failed.values() for key in keys]
        return [*((key, "trained") for key in self.trained), *left, *lost]


@dataclass(frozen=True, slots=True)
class LedgerHistory:
    """What a ledger says when its starts are taken into account."""

    entries: tuple[LedgerEntry, ...]  # of the history that counts, in order
    starts: int
    done_again: int  # steps that a later start made void
    other_samples: int  # of those, steps that were done again with other samples
    damage: tuple[str, ...] = field(default=())


class Ledger:
    """The one writer of a run's ledger."""

    def __init__(self, path: Path) -> None:
        """Open for appending; half a line of a writer that was killed is cut off, for its step never counted."""
        self._path = path
        _cut_torn_line(path)
        self._starts = read_ledger(path).starts

    def start(self, from_step: int) -> None:
        """Steps after `from_step` are done again from here on. Raises OSError when it cannot be written."""
        self._starts += 1
        self._append({"start": self._starts, "from_step": from_step})

    def commit(self, entry: LedgerEntry) -> None:
        """One finished step, on disk when this returns. Raises OSError when it cannot be written."""
        self._append(
            {
                "step": entry.step,
                "versions": list(entry.versions),
                "data": dict(entry.data),
                "trained": _packed(entry.trained),
                "filtered": {why: _packed(keys) for why, keys in entry.filtered.items()},
                "failed": {why: _packed(keys) for why, keys in entry.failed.items()},
            }
        )

    def _append(self, record: Mapping[str, object]) -> None:
        line = json.dumps({"crc": _crc(record), "record": record}) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            before = os.fstat(descriptor).st_size
            try:
                _write_all(descriptor, line.encode())
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, before)  # a half line would swallow the next one
                raise
        finally:
            os.close(descriptor)


def read_ledger(path: Path) -> LedgerHistory:
    """The history that counts. A missing file is an empty one; lines that cannot be right are named in `damage`."""
    entries: list[LedgerEntry] = []
    void: dict[int, LedgerEntry] = {}
    starts = done_again = other = 0
    damage: list[str] = []
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # what has no end was never committed
    for number, line in enumerate(lines, 1):
        record = _parse(line)
        if record is None:
            damage.append(f"line {number} is damaged")
            continue
        if "start" in record:
            starts = record["start"]
            gone = [entry for entry in entries if entry.step > record["from_step"]]
            void |= {entry.step: entry for entry in gone}
            done_again += len(gone)
            entries = entries[: len(entries) - len(gone)]
            continue
        entry = _entry(record)
        if entry.step in void:
            other += set(void.pop(entry.step).outcomes()) != set(entry.outcomes())
        entries.append(entry)
    return LedgerHistory(tuple(entries), starts, done_again, other, tuple(damage))


def _entry(record: Mapping[str, Any]) -> LedgerEntry:
    return LedgerEntry(
        step=record["step"],
        trained=_unpacked(record["trained"]),
        filtered={why: _unpacked(keys) for why, keys in record["filtered"].items()},
        failed={why: _unpacked(keys) for why, keys in record["failed"].items()},
        versions=(record["versions"][0], record["versions"][1]),
        data=record["data"],
    )


def _packed(keys: Iterable[SampleKey]) -> list[list[object]]:
    """One entry a prompt: [epoch, prompt, [k, ...]]."""
    prompts: dict[tuple[int, str], list[int]] = {}
    for key in keys:
        prompts.setdefault((key.epoch, key.prompt_id), []).append(key.k)
    return [[epoch, prompt, ks] for (epoch, prompt), ks in prompts.items()]


def _unpacked(packed: Sequence[Sequence[Any]]) -> tuple[SampleKey, ...]:
    return tuple(SampleKey(epoch, prompt, k) for epoch, prompt, ks in packed for k in ks)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
        return found["record"] if found["crc"] == _crc(found["record"]) else None
    except (ValueError, KeyError, TypeError):
        return None


def _crc(record: Mapping[str, object]) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
