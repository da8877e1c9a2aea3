"""Offline training: one loop for every algorithm that learns from rows on disk.

    rows in seeded order ──► one shard a rank ──► update ──► every so often: held-out figures, checkpoint
         (feeder)                                 (learner)

The feeder tokenised everything before the first step; the loop holds references and small numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from raylign.conf.errors import Preempted, RunFailed, Stopped
from raylign.trainer.loops.best import BestRule, BestStep
from raylign.trainer.loops.clock import PhaseClock
from raylign.trainer.loops.hooks import MetricSink, due
from raylign.trainer.loops.interfaces import Ref, UpdateResult
from raylign.trainer.loops.watch import LearningWatch

_TRL_NAMES = {"lr": "learning_rate"}
"""Offline metrics have the names that TRL's users know; the learner's own serve PPO too."""


@dataclass(frozen=True, slots=True)
class OfflineProgress:
    """Where an offline run stands between two optimizer steps."""

    step: int
    data: Mapping[str, int | str]
    best: BestStep | None = None  # by the metric of choice; None without one, or before the first evaluation


class Feeder(Protocol):
    """Cuts the row order into updates; each is one RankShard reference a rank."""

    async def next_update(self) -> Sequence[Ref]: ...
    async def held_out(self) -> Mapping[str, Sequence[Ref]]:
        """Each held-out set by name, as one shard a rank."""
        ...

    async def state(self) -> Mapping[str, int | str]: ...


class OfflineLearner(Protocol):
    """The ranks that train."""

    async def update(self, shards: Sequence[Ref]) -> UpdateResult: ...
    async def evaluate(self, shards: Sequence[Ref]) -> Mapping[str, float]:
        """The objective's metrics without training; names without group."""
        ...


class OfflineSaver(Protocol):
    """Makes a step resumable."""

    async def save(self, progress: OfflineProgress, *, wait: bool) -> str | None:
        """As hooks.CheckpointSaver. The state of `progress.best` is kept however old it gets."""
        ...

    async def check(self) -> None: ...
    async def close(self) -> None: ...

    async def export(self, progress: OfflineProgress) -> None:
        """The present model as a plain folder; the best one's is kept besides the last."""
        ...


@dataclass(frozen=True, slots=True)
class OfflineSettings:
    """What the loop itself needs to know."""

    num_steps: int
    eval_every: int  # optimizer steps; 0: only before the first and after the last
    save_every: int  # optimizer steps; 0: only at the end
    best: BestRule | None = None


class OfflineLoop:
    """Runs optimizer steps `progress.step + 1 .. num_steps`; errors as OnlineLoop."""

    def __init__(
        self,
        feeder: Feeder,
        learner: OfflineLearner,
        settings: OfflineSettings,
        *,
        progress: OfflineProgress,
        sink: MetricSink,
        saver: OfflineSaver,
        should_stop: Callable[[], bool],
    ) -> None:
        self._feeder = feeder
        self._learner = learner
        self._settings = settings
        self._progress = progress
        self._sink = sink
        self._saver = saver
        self._should_stop = should_stop
        self._watch = LearningWatch("train", lr_key="policy.optim.lr")

    async def run(self) -> OfflineProgress:
        """Train to the last step, leave its model as a folder, and return where the run stands."""
        try:
            return await self._run()
        finally:
            await self._saver.close()

    async def _run(self) -> OfflineProgress:
        held_out = await self._feeder.held_out()
        if self._progress.step == 0 and held_out:
            self._sink.log(0, await self._evaluate(held_out))
        while self._progress.step < self._settings.num_steps:
            last = self._progress.step + 1 == self._settings.num_steps
            found_best = await self._advance(held_out, last=last)
            stopping = self._should_stop() and not last
            await self._saver.check()
            if last or stopping or found_best or due(self._progress.step, self._settings.save_every):
                refused = await self._saver.save(self._progress, wait=last or stopping)
                if refused and (last or stopping):
                    raise Stopped(f"step {self._progress.step} is trained and could not be saved: {refused}")
            if found_best and not last:
                await self._saver.export(self._progress)
            if stopping:
                raise Preempted(f"stopped on request after step {self._progress.step}; its state is saved")
        await self._saver.export(self._progress)
        return self._progress

    async def _advance(self, held_out: Mapping[str, Sequence[Ref]], *, last: bool) -> bool:
        """One step, measured and logged. True when it is the best so far."""
        step = self._progress.step + 1
        metrics = await self._step(step)
        best = None
        if held_out and (last or due(step, self._settings.eval_every)):
            metrics |= await self._evaluate(held_out)
            rule = self._settings.best
            best = rule.improved(self._progress.best, step, metrics) if rule else None
        state = await self._feeder.state()
        if "num_tokens" in state:
            metrics["train/num_tokens"] = float(state["num_tokens"])
        self._sink.log(step, metrics)
        self._watch.check(step, metrics)
        self._progress = OfflineProgress(step, state, best or self._progress.best)
        return best is not None

    async def _step(self, step: int) -> dict[str, float]:
        clock = PhaseClock()
        with clock.phase("data"):
            shards = await self._feeder.next_update()
        with clock.phase("update"):
            result = await self._learner.update(shards)
        loss = result.metrics["loss"]
        if result.steps_applied == 0 or not math.isfinite(loss):
            raise RunFailed(f"learner, step {step}: loss is {loss} and {result.steps_skipped} optimizer steps skipped")
        metrics = {f"train/{_TRL_NAMES.get(name, name)}": value for name, value in result.metrics.items()}
        return {**metrics, **clock.seconds()}

    async def _evaluate(self, held_out: Mapping[str, Sequence[Ref]]) -> dict[str, float]:
        figures: dict[str, float] = {}
        for name, shards in held_out.items():
            found = await self._learner.evaluate(shards)
            figures |= {f"eval/{name}/{metric}": value for metric, value in found.items()}
        return figures
