"""How long rollout workers have had something to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """Seconds since the clock was made."""

    generating_s: float  # in which at least one worker was busy
    worker_s: float  # busy time of all workers together

    def since(self, before: Load) -> Load:
        """What came after `before`."""
        return Load(self.generating_s - before.generating_s, self.worker_s - before.worker_s)


class LoadClock:
    """Counts busy workers over time."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._busy, self._at = 0, now()
        self._total = Load(0.0, 0.0)

    def change(self, busy: int) -> None:
        """A worker got its first work (1) or finished its last (-1)."""
        self._total = self.total()
        self._at = self._now()
        self._busy += busy

    def total(self) -> Load:
        """Up to now."""
        passed = self._now() - self._at
        return Load(
            self._total.generating_s + (passed if self._busy else 0.0), self._total.worker_s + passed * self._busy
        )
