"""What an engine says of its own work: how full its cache was, and how often it had to drop a request. Pure Python."""

from __future__ import annotations

from typing import Protocol

from raylign.rollout.interfaces import EngineUse


class SchedulerFigures(Protocol):
    """Of vLLM's SchedulerStats, what is read: one object a step of the engine."""

    @property
    def kv_cache_usage(self) -> float: ...


class IterationFigures(Protocol):
    """Of vLLM's IterationStats."""

    @property
    def num_preempted_reqs(self) -> int: ...


class UseMeter:
    """A vLLM stat logger, by its methods: vLLM calls `record` after each step of the engine, on its client's loop."""

    def __init__(self) -> None:
        self._peak, self._preemptions = 0.0, 0

    def logger(self, config: object, engine_index: int) -> UseMeter:
        """As vLLM makes its loggers. An engine here is one core, so there is one meter."""
        return self

    def record(
        self, scheduler_stats: SchedulerFigures | None, iteration_stats: IterationFigures | None, **_: object
    ) -> None:
        """One step of the engine."""
        if scheduler_stats is not None:
            self._peak = max(self._peak, scheduler_stats.kv_cache_usage)
        if iteration_stats is not None:
            self._preemptions += iteration_stats.num_preempted_reqs

    def taken(self) -> EngineUse:
        """Since it was asked last."""
        use = EngineUse(self._peak, self._preemptions)
        self._peak, self._preemptions = 0.0, 0
        return use

    def log(self) -> None:
        """Nothing is printed."""

    def log_engine_initialized(self) -> None:
        """Nor at the start."""
