"""The hook that writes samples/step-NNNNNN.parquet: everything needed to read or replay a step's samples."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from raylign.data.types import RolloutGroup, SampleKey
from raylign.records.run_folder import RunPaths
from raylign.records.samples import SampleRow, sample_rows, write_samples
from raylign.records.tracking import Tracker
from raylign.trainer.loops.hooks import OnlineProgress, StepReport, due
from raylign.trainer.loops.interfaces import ExperienceHandles, GroupHandle


class SampleReader(Protocol):
    """Reads a step's samples back to the controller."""

    async def rollout_group(self, handle: GroupHandle) -> RolloutGroup: ...
    async def advantages(self, handles: ExperienceHandles) -> Mapping[SampleKey, float]: ...


class SamplesHook:
    """Every `every` steps, and after the last."""

    def __init__(self, reader: SampleReader, folder: RunPaths, tracker: Tracker, *, every: int) -> None:
        self._reader = reader
        self._folder = folder
        self._tracker = tracker
        self._every = every

    async def on_start(self, progress: OnlineProgress) -> Mapping[str, float]:
        """Nothing was sampled yet."""
        return {}

    async def after_step(self, report: StepReport, *, last: bool) -> Mapping[str, float]:
        """Write the step's file; encoding runs beside the loop's own event handling."""
        step = report.progress.step
        if not last and not due(step, self._every):
            return {}
        groups = await asyncio.gather(*(self._reader.rollout_group(handle) for handle in report.groups))
        rows: list[SampleRow] = sample_rows(groups, report.outcomes, await self._reader.advantages(report.experience))
        await asyncio.to_thread(write_samples, self._folder.samples_file(step), rows)
        self._tracker.log_samples(step, rows)
        return {}
