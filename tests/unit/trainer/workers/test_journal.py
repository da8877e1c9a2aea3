"""Batches that no checkpoint will retire are kept up to a number of steps, aloud; what is kept is a whole beginning."""

from __future__ import annotations

from pathlib import Path

from raylign.data.types import Completion, FinishReason, Prompt, Reward, RolloutGroup, SampleKey, SamplingParams
from raylign.records.journal import Batch, batch_file, write_batch
from raylign.trainer.loops.interfaces import StepBatch
from raylign.trainer.workers.journal import RunJournal

EMPTY = StepBatch((), (), {}, ())


def group() -> RolloutGroup:
    answer = Completion(SampleKey(0, "p", 0), (5,), (-0.5,), FinishReason.STOP, (), "")
    return RolloutGroup(Prompt("p", (), (1, 2)), SamplingParams(temperature=1.0, max_new_tokens=4, seed=1), (answer,))


class Writer:
    """Stands where the assembler stands."""

    async def journal(self, folder: str, step: int, settings: str, batch: StepBatch) -> str:
        reward = Reward(SampleKey(0, "p", 0), 1.0, {})
        write_batch(Path(folder), Batch(step, settings, {"index": step}, (), (group(),), (reward,)))
        return ""


def kept(folder: Path) -> list[int]:
    return [step for step in range(1, 40) if batch_file(folder, step).exists()]


async def test_without_checkpoints_the_first_steps_are_kept_and_no_more(tmp_path: Path) -> None:
    said: list[str] = []
    journal = RunJournal(tmp_path, Writer(), "s", most=5)  # type: ignore[arg-type]
    assert journal.resume(0, said.append) is None
    for step in range(1, 13):
        await journal.write(step, EMPTY)
    assert kept(tmp_path) == [1, 2, 3, 4, 5]
    assert len(said) == 1 and "the batches of 5 steps are kept" in said[0] and "checkpoint.every" in said[0]

    again = RunJournal(tmp_path, Writer(), "s", most=5)  # type: ignore[arg-type]
    assert again.resume(0, said.append) == {"index": 5} and again.last == 5, "the beginning can be done again"
    for step in range(6, 9):
        await again.write(step, EMPTY)
    assert kept(tmp_path) == [1, 2, 3, 4, 5]


async def test_with_checkpoints_every_batch_is_written(tmp_path: Path) -> None:
    journal = RunJournal(tmp_path, Writer(), "s")  # type: ignore[arg-type]
    journal.resume(0, lambda _: None)
    for step in range(1, 13):
        await journal.write(step, EMPTY)
    assert kept(tmp_path) == list(range(1, 13))
