"""What an engine that shares its cards has on them: everything, its weights alone, or nothing. Pure asyncio.

    WHOLE ──leave──► NOTHING ──weights_back──► WEIGHTS ──cache_back──► WHOLE
      ▲                 ▲                         │
      │                 └────────leave────────────┘      (an update that failed half-way)
      └── where every engine starts; one with cards of its own never leaves

The weights come back as memory without content, for an update to fill; the cache only once that update's weights have
been compared and are right, so that nothing can be sampled from weights that are not known.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

SLEEP_LEVEL = 2
"""vLLM's: weights are dropped, not kept on the host, for the learner publishes them anyway."""
WEIGHTS, CACHE = "weights", "kv_cache"
"""vLLM's names of the two."""


class Sleeper(Protocol):
    """The part of vLLM's AsyncLLM that gives memory back."""

    async def sleep(self, level: int, mode: str) -> None: ...
    async def wake_up(self, tags: list[str]) -> object: ...


class Resident(Enum):
    """What lies on the cards."""

    WHOLE = "weights and cache"
    WEIGHTS = "weights without content"
    NOTHING = "nothing"


class Residence:
    """Follows one engine. A call that failed leaves the state as it was: what the cards hold is then not known, and
    whoever hears of it ends the engine's process."""

    def __init__(self) -> None:
        self.holds = Resident.WHOLE

    async def leave(self, engine: Sleeper) -> None:
        """Give weights and cache back; of what is there already nothing. No request may run."""
        if self.holds is Resident.NOTHING:
            return
        await engine.sleep(SLEEP_LEVEL, "wait")
        self.holds = Resident.NOTHING

    async def weights_back(self, engine: Sleeper) -> None:
        """Room for the weights, before an update."""
        if self.holds is Resident.NOTHING:
            await engine.wake_up([WEIGHTS])
            self.holds = Resident.WEIGHTS

    async def cache_back(self, engine: Sleeper) -> None:
        """Room for the cache, after an update whose weights are right."""
        if self.holds is Resident.WEIGHTS:
            await engine.wake_up([CACHE])
            self.holds = Resident.WHOLE
