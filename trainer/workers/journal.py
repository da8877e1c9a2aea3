"""The run's journal on Ray: written by the assembler's process, which has the batch anyway, read by the controller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import ray
from raylign.conf.errors import RunFailed, Stopped
from raylign.records.journal import Batch, JournalError, read_batch, replayable, void
from raylign.rollout.interfaces import GroupHandle, Ref, metas_of
from raylign.trainer.loops.interfaces import StepBatch
from raylign.trainer.workers.experience import Assembler

UNSAVED_STEPS = 100
"""Steps after the one that a run went on from whose batches are kept where no checkpoint will retire them."""


class RunJournal:
    """A loops.BatchJournal in a run's folder."""

    def __init__(self, folder: Path, assembler: Assembler, settings: str, *, most: int | None = None) -> None:
        """`settings`: digest of everything that decides what a step computes; other batches are not trained again.

        `most`: steps after the resumed one whose batches are kept; None: all, for checkpoints retire them.
        """
        self._folder = folder
        self._assembler = assembler
        self._settings = settings
        self._last = 0
        self._most = most
        self._full_after: int | None = None
        self._tell: Callable[[str], None] = lambda _: None

    def resume(self, step: int, tell: Callable[[str], None]) -> Mapping[str, int | str] | None:
        """Find what can be done again after the checkpoint of `step`; the prompts' position after it.

        None when nothing can; then, and where the chain breaks, batches that will not be used are removed. `tell` gets
        a sentence of what is done again, and of what is not.
        """
        self._last, position, why = replayable(self._folder, after=step, settings=self._settings)
        void(self._folder, after=self._last)
        self._tell, self._full_after = tell, None if self._most is None else step + self._most
        if self._last > step:
            again = f"step {step + 1} is" if self._last == step + 1 else f"steps {step + 1} to {self._last} are"
            tell(f"{again} trained again on the samples that the run had drawn")
        if why:
            tell(f"warning: samples of later steps are generated again: {why}")
        return position

    @property
    def last(self) -> int:
        """The last step that can be done again."""
        return self._last

    async def write(self, step: int, batch: StepBatch) -> None:
        """Raises Stopped when the disk refuses it: nothing was trained on the batch. Beyond `most` nothing is kept."""
        if self._full_after is not None and step > self._full_after:
            if step == self._full_after + 1:
                self._tell(
                    f"checkpoint.every=0: the batches of {self._most} steps are kept, those of later ones are not, "
                    "so a restart draws their samples anew; set checkpoint.every to save on the way"
                )
            return
        refused = await self._assembler.journal(str(self._folder), step, self._settings, batch)
        if refused:
            raise Stopped(f"step {step}: its samples could not be written to {self._folder}: {refused}")

    async def read(self, step: int) -> StepBatch:
        """Raises RunFailed when it is damaged since `resume` looked."""
        try:
            batch: Batch = await asyncio.to_thread(read_batch, self._folder, step)
        except JournalError as error:
            raise RunFailed(f"step {step}: {error}; start again: it is left out then") from error
        groups = tuple(GroupHandle(Ref(ray.put(group)), metas_of(group)) for group in batch.groups)
        return StepBatch(groups, batch.outcomes, batch.data, batch.filtered)
