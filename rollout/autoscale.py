"""How many rollout workers keep the learner fed. Pure: what was measured goes in, a number comes out.

The model: generation takes `workers / m` times as long with m workers; where it may run ahead of training the learner
waits for what training does not hide, else for all of it. The smallest number of workers with which the learner waits
at most `wait_share` of a step is wanted. What keeps it from swinging: it acts on means over `steps` steps that all had
the wanted workers; it grows only when the wait is a quarter over the aim, and lets one go only when the wait with one
less would be a quarter under it; a worker that had to be brought back is not let go again, and growth that made
generation no faster is not followed by more, until a step's work is another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

BAND = 0.25
"""Share of the aim that a wait may be off before the number of workers changes."""

BUSY_ENOUGH = 0.5
"""Engines idle for more of the generation than this wait for its longest answers: others would wait with them."""

FUTILE = 1.1
"""Growth that does not bring this many times the tokens a second is not followed by more."""

CHANGED = 1.4
"""A step with this many times the tokens of an earlier one, or that share of them, is another load."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the policy may do."""

    min_workers: int
    max_workers: int
    wait_share: float  # of a step's time, that the learner may wait for rollouts
    steps: int  # measured before each decision
    ahead: bool  # generation runs ahead of training (rollout.max_staleness > 0)


@dataclass(frozen=True, slots=True)
class StepLoad:
    """One step, as measured."""

    workers: int  # that served it
    step_s: float
    wait_s: float  # of the learner, for rollouts
    generating_s: float  # with at least one engine busy
    worker_s: float  # busy time of all engines together
    tokens: int  # sampled
    ready: int  # finished steps in the queue when it ended

    @property
    def idle_share(self) -> float:
        """Share of the workers' time without anything to do."""
        return 1.0 - min(1.0, self.worker_s / max(1e-9, self.workers * self.step_s))


def decide(window: Sequence[StepLoad], bounds: Bounds) -> int:
    """The workers wanted after steps that all had the same number of them."""
    now = window[-1].workers
    step, wait = fmean(load.step_s for load in window), fmean(load.wait_s for load in window)
    generating = fmean(load.generating_s for load in window)
    training, other = step - wait, max(0.0, wait - generating)

    def share(workers: int) -> float:
        needed = generating * now / workers
        waits = max(0.0, needed - training) if bounds.ahead else other + needed
        return waits / (training + waits) if training + waits > 0 else 0.0

    queued = fmean(load.ready for load in window) >= 0.5
    busy = fmean(load.worker_s for load in window) / max(1e-9, generating * now)
    if wait > bounds.wait_share * (1 + BAND) * step and not queued and busy >= BUSY_ENOUGH:
        most = max(now, min(2 * now, bounds.max_workers))
        return next((m for m in range(now + 1, most) if share(m) <= bounds.wait_share), most)
    if now > bounds.min_workers and share(now - 1) <= bounds.wait_share * (1 - BAND):
        return now - 1
    return now


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What a change has taught, for steps of about this many tokens."""

    workers: int
    tokens: float

    def holds(self, tokens: float) -> bool:
        return self.tokens / CHANGED <= tokens <= self.tokens * CHANGED


class Autoscaler:
    """Remembers the steps since the last change, and what earlier changes have brought."""

    def __init__(self, bounds: Bounds, workers: int) -> None:
        self._bounds = bounds
        self._wanted = workers
        self._window: list[StepLoad] = []
        self._before: tuple[int, float] | None = None  # workers and tokens a second before the last change
        self._enough: _Lesson | None = None  # more brought nothing
        self._needed: _Lesson | None = None  # fewer were too few

    def after_step(self, load: StepLoad) -> int:
        """The workers wanted now. While some are still missing, or too many, nothing is measured."""
        if load.workers != self._wanted:
            self._window.clear()
            return self._wanted
        self._window.append(load)
        if len(self._window) < self._bounds.steps:
            return self._wanted
        tokens = fmean(load.tokens for load in self._window)
        rate = tokens / max(1e-9, fmean(load.generating_s for load in self._window))
        wanted = self._as_learnt(decide(self._window, self._bounds), tokens, rate)
        if wanted != self._wanted:
            self._before = self._wanted, rate
        self._wanted = wanted
        self._window.clear()
        return wanted

    def _as_learnt(self, wanted: int, tokens: float, rate: float) -> int:
        now, before = self._wanted, self._before
        if before is not None and before[0] < now:
            self._before = None  # growth is judged once
            if rate < FUTILE * before[1]:
                self._enough = _Lesson(now, tokens)
        if before is not None and before[0] > now and wanted > now:
            self._needed = _Lesson(now + 1, tokens)
        if wanted > now and self._enough is not None and self._enough.holds(tokens):
            return min(wanted, max(now, self._enough.workers))
        if wanted < now and self._needed is not None and self._needed.holds(tokens):
            return max(wanted, min(now, self._needed.workers))
        return wanted
