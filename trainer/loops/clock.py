"""Where a step's time went: wall seconds by phase, also for phases that overlap."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class PhaseClock:
    """Collects `time/<phase>`. Phases may overlap, so they need not add up to `time/step`."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block; a name met twice adds up."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    async def timed(self, name: str, work: Awaitable[T]) -> T:
        """Time one awaitable among several that run side by side."""
        with self.phase(name):
            return await work

    def phases(self) -> Mapping[str, float]:
        """`time/<phase>` in seconds."""
        return {f"time/{name}": value for name, value in self._seconds.items()}

    def seconds(self) -> Mapping[str, float]:
        """`time/<phase>` in seconds and `time/step` since the clock was made."""
        return {**self.phases(), "time/step": time.perf_counter() - self._start}
