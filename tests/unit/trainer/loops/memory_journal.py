"""A journal without a disk."""

from __future__ import annotations

from dataclasses import dataclass, field

from raylign.trainer.loops.interfaces import StepBatch


@dataclass
class MemoryJournal:
    """`last`: as far as the batches may be trained again."""

    batches: dict[int, StepBatch] = field(default_factory=dict)
    last: int = 0
    events: list[str] = field(default_factory=list)

    async def write(self, step: int, batch: StepBatch) -> None:
        self.events.append(f"journal {step}")
        self.batches[step] = batch

    async def read(self, step: int) -> StepBatch:
        return self.batches[step]
