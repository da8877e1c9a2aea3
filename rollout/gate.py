"""When an engine may answer: no token is sampled during a weight update. Pure asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from typing import TypeVar

from raylign.rollout.interfaces import EngineDead, WeightUpdateError

T = TypeVar("T")


class Phase(Enum):
    """Where an engine is in the life of its weights. Only a SERVING engine answers."""

    SERVING = "serving"
    UPDATING = "in a weight update"
    VERIFIED = "updated and verified, not resumed"
    REFUSED = "refused: its weights are not known to be right"
    ASLEEP = "asleep: its cards are the learners'"


class ServingGate:
    """Counts running calls; holds new ones back during an update; turns them away after a failed one."""

    def __init__(self, name: str) -> None:
        self.phase = Phase.SERVING
        self.in_flight = 0
        self._name = name
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def serving(self, timeout_s: float) -> AsyncIterator[None]:
        """Hold a place among the running calls, once the engine serves.

        Raises EngineDead when an update lasts longer than `timeout_s`, WeightUpdateError when the engine is refused.
        """
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self.phase in (Phase.SERVING, Phase.REFUSED))
                if self.phase is Phase.REFUSED:
                    raise WeightUpdateError(f"{self._name} does not serve: it is {self.phase.value}")
                self.in_flight += 1
        except TimeoutError as error:
            raise EngineDead(f"{self._name}: still {self.phase.value} after {timeout_s:g} s") from error
        try:
            yield
        finally:
            self.in_flight -= 1
            await self.enter(self.phase)

    async def enter(self, phase: Phase) -> None:
        """Move to `phase` and wake whoever waits."""
        async with self._changed:
            self.phase = phase
            self._changed.notify_all()

    async def unless_refused(self, work: asyncio.Task[T], timeout_s: float) -> T:
        """The result of a running call that a weight update may interrupt.

        Raises WeightUpdateError, and cancels the call, when the update ends with weights that are not known to be
        right: what it sampled since then is not used. Raises TimeoutError after `timeout_s`.
        """
        refused = asyncio.create_task(self._refused())
        try:
            await asyncio.wait([work, refused], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if not refused.done():
                raise TimeoutError
            raise WeightUpdateError(f"{self._name} does not resume: it is {self.phase.value}")
        finally:
            work.cancel()
            refused.cancel()

    async def _refused(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.phase is Phase.REFUSED)

    async def close(self, timeout_s: float, *, drain: bool = True, verb: str = "begin_update") -> None:
        """Enter UPDATING, for `verb`; with `drain`, return once the running calls have ended.

        Raises WeightUpdateError naming how many were late; nothing is touched then and the phase is as before.
        """
        before = self.phase
        await self.enter(Phase.UPDATING)
        if not drain:
            return
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self.in_flight == 0)
        except TimeoutError as error:
            await self.enter(before)
            late = f"{self.in_flight} generation calls did not end within sync.timeout_s={timeout_s:g} s"
            raise WeightUpdateError(f"{self._name}: {verb}: {late}") from error


async def gather_or_cancel(calls: Sequence[Awaitable[T]]) -> list[T]:
    """All results in order; when one fails the others are cancelled, so that none outlives the call."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
