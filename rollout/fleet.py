"""How many rollout workers a live run has: starts new ones, replaces dead ones, lets surplus ones go. No Ray here.

Starting happens beside the steps; a worker joins the pool between two steps and serves after the next verified
publication. Nothing here touches the learner.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from raylign.rollout.interfaces import EngineDead
from raylign.rollout.member import WorkerHandle
from raylign.rollout.pool import RolloutPool

logger = logging.getLogger(__name__)

MAX_FAILED_STARTS = 5
"""Starts that may fail one after another before the fleet goes on with what it has."""


class StartableHandle(WorkerHandle, Protocol):
    """A worker that is not up yet."""

    async def start(self, timeout_s: float) -> None: ...
    def kill(self) -> None: ...


class Fleet:
    """Keeps `pool` at the wanted number of workers. Call `adjust` between two steps."""

    def __init__(
        self, pool: RolloutPool, spawn: Callable[[int], StartableHandle], *, first_index: int, start_timeout_s: float
    ) -> None:
        """`spawn(index)`: a new worker named after `index`, counted from `first_index`: no name is used twice."""
        self._pool, self._spawn, self._start_timeout_s = pool, spawn, start_timeout_s
        self._next_index = first_index
        self._starting: dict[asyncio.Task[None], StartableHandle] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._failed = 0
        self._wanted = 0

    async def adjust(self, wanted: int) -> None:
        """Take in who is ready, end who is dead, start or remove what is missing or too many. Waits for no start."""
        if wanted != self._wanted:
            self._wanted, self._failed = wanted, 0
        for member in self._pool.take_dead():
            task = asyncio.create_task(member.stop())  # its process may hang: nobody waits
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)
        self._take_in()
        present = len(self._pool.members())
        for _ in range(wanted - present - len(self._starting)):
            if self._failed >= MAX_FAILED_STARTS:
                break
            self._begin_start()
        for task, handle in list(self._starting.items())[max(0, wanted - present) :]:
            self._give_up(task, handle)
        for member in self._pool.members()[max(1, wanted) :]:
            logger.warning("%s leaves the pool: %d workers are wanted", member.name, wanted)
            await self._pool.remove_worker(member.name)

    def close(self) -> None:
        """End what is still starting."""
        for task, handle in list(self._starting.items()):
            self._give_up(task, handle)

    def _begin_start(self) -> None:
        handle = self._spawn(self._next_index)
        self._next_index += 1
        self._starting[asyncio.create_task(handle.start(self._start_timeout_s))] = handle

    def _give_up(self, task: asyncio.Task[None], handle: StartableHandle) -> None:
        del self._starting[task]
        task.cancel()
        handle.kill()

    def _take_in(self) -> None:
        for task in [task for task in self._starting if task.done()]:
            handle = self._starting.pop(task)
            error = task.exception()
            if error is None:
                self._failed = 0
                self._pool.add_worker(handle)
                logger.warning("%s joins the pool; it serves after the next verified publication", handle.name)
                continue
            if not isinstance(error, EngineDead):
                raise error
            handle.kill()
            self._failed += 1
            going_on = "the run goes on without" if self._failed >= MAX_FAILED_STARTS else "another is started"
            logger.warning("%s did not start (%s); %s", handle.name, error, going_on)
