"""The offline loop against an in-memory feeder and learner: order, errors, saving, resuming."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from raylign.conf.errors import Preempted, RunFailed
from raylign.trainer.loops.interfaces import Ref, UpdateResult
from raylign.trainer.loops.offline import OfflineLoop, OfflineProgress, OfflineSettings


@dataclass
class Rows:
    """A feeder whose updates are the numbers position, position + 1, ..."""

    position: int = 0

    async def next_update(self) -> Sequence[Ref]:
        self.position += 1
        return [Ref(self.position)]

    async def held_out(self) -> Mapping[str, Sequence[Ref]]:
        return {"held_out": [Ref("held out")]}

    async def state(self) -> Mapping[str, int | str]:
        return {"position": self.position}


@dataclass
class Adder:
    """A learner that remembers what it was given; `bad` is the row that has no finite loss."""

    bad: int = -1
    seen: list[int] = field(default_factory=list)
    evaluated_after: list[int] = field(default_factory=list)

    async def update(self, shards: Sequence[Ref]) -> UpdateResult:
        self.seen.append(shards[0])
        loss = float("nan") if shards[0] == self.bad else float(shards[0])
        return UpdateResult({"loss": loss}, steps_applied=1, steps_skipped=0)

    async def evaluate(self, shards: Sequence[Ref]) -> Mapping[str, float]:
        self.evaluated_after.append(len(self.seen))
        return {"accuracy": 0.5}


@dataclass
class Book:
    lines: dict[int, Mapping[str, float]] = field(default_factory=dict)
    saved: list[OfflineProgress] = field(default_factory=list)
    exported: list[int] = field(default_factory=list)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.lines[step] = metrics

    async def check(self) -> None: ...
    async def close(self) -> None:
        self.closed += 1

    closed: int = 0
    waited_for: list[int] = field(default_factory=list)

    async def save(self, progress: OfflineProgress, *, wait: bool) -> None:
        assert progress.step in self.lines, "a checkpoint may not be ahead of metrics.jsonl"
        self.saved.append(progress)
        self.waited_for += [progress.step] if wait else []

    async def export(self, progress: OfflineProgress) -> None:
        self.exported.append(progress.step)


def make_loop(rows: Rows, learner: Adder, book: Book, *, start: int = 0, stop_after: int = 10**9) -> OfflineLoop:
    return OfflineLoop(
        rows,
        learner,
        OfflineSettings(num_steps=6, eval_every=4, save_every=3),
        progress=OfflineProgress(start, {}),
        sink=book,
        saver=book,
        should_stop=lambda: len(learner.seen) >= stop_after,
    )


def test_every_row_is_trained_once_and_evaluation_and_saving_happen_when_due() -> None:
    learner, book = Adder(), Book()
    end = asyncio.run(make_loop(Rows(), learner, book).run())
    assert learner.seen == [1, 2, 3, 4, 5, 6]
    assert learner.evaluated_after == [0, 4, 6]
    assert [p.step for p in book.saved] == [3, 6] and book.waited_for == [6] and book.closed == 1
    assert end == OfflineProgress(6, {"position": 6})
    assert book.lines[4]["eval/held_out/accuracy"] == 0.5 and book.lines[4]["train/loss"] == 4.0


def test_a_loss_that_is_not_a_number_ends_the_run_before_anything_is_saved() -> None:
    learner, book = Adder(bad=2), Book()
    with pytest.raises(RunFailed, match="step 2: loss is nan"):
        asyncio.run(make_loop(Rows(), learner, book).run())
    assert book.saved == []


def test_a_stop_request_saves_and_the_resumed_run_continues_with_the_next_row() -> None:
    first, book = Adder(), Book()
    with pytest.raises(Preempted):
        asyncio.run(make_loop(Rows(), first, book, stop_after=2).run())
    saved = book.saved[-1]
    second = Adder()
    asyncio.run(make_loop(Rows(position=int(saved.data["position"])), second, book, start=saved.step).run())
    assert first.seen + second.seen == [1, 2, 3, 4, 5, 6]
    assert second.evaluated_after == [2, 4], "a resumed run repeats no first evaluation"
