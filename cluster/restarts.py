"""How often one place of a crew may lose its worker: it is filled again after growing pauses, then given up."""

from __future__ import annotations

import time
from collections.abc import Callable

WINDOW_S = 3600.0
"""Deaths longer ago are forgotten: a spot node may go every few hours for as long as the run lasts."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0
"""Before the second restart within the window, and at most; each is twice the one before. The first has no pause."""


class Restarts:
    """Of one place."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`most`: restarts within WINDOW_S (cluster.max_worker_restarts)."""
        self.most, self._clock = most, clock
        self._deaths: list[float] = []

    def died(self) -> float | None:
        """Seconds until another may start in its place; None when there were too many: it is given up."""
        now = self._clock()
        self._deaths = [death for death in self._deaths if death > now - WINDOW_S] + [now]
        count = len(self._deaths)
        if count > self.most:
            return None
        return 0.0 if count == 1 else min(FIRST_PAUSE_S * 2.0 ** (count - 2), LONGEST_PAUSE_S)

    def given_up(self, reason: str) -> str:
        """The sentence that says so. `reason`: of the last death."""
        times = f"{len(self._deaths)} times within an hour" if self.most else "once"
        return f"died {times} and is not started again (cluster.max_worker_restarts={self.most}); the last: {reason}"
