"""How many workers of a kind a live run has: starts new ones, replaces dead ones, lets surplus ones go. No Ray here.

Starting and draining happen beside the steps; a rollout worker that joins serves after the next verified publication.
Nothing here touches the learner.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Generic, Protocol, TypeVar

from raylign.cluster.restarts import Restarts

logger = logging.getLogger(__name__)

MAX_FAILED_STARTS = 5
"""Starts that may fail one after another, in whichever place, before the fleet goes on with what it has. Waiting for
room is no failure; to die before having served is one."""

ROOM_LOOK_S = 5.0
"""How long one question takes whether the cluster has room for a worker."""


class Startable(Protocol):
    """A worker that is not up yet."""

    @property
    def name(self) -> str: ...
    async def placed(self, timeout_s: float) -> bool: ...
    async def start(self, timeout_s: float) -> None: ...
    def kill(self) -> None: ...


class Present(Protocol):
    """A worker of the crew."""

    @property
    def name(self) -> str: ...
    @property
    def served(self) -> bool:
        """It has done work, or is ready to: its start was worth something."""
        ...

    @property
    def reason(self) -> str:
        """Of a dead one: why."""
        ...

    @property
    def given_up(self) -> bool:
        """It has been started again in its place too often already."""
        ...

    async def stop(self) -> None: ...


W = TypeVar("W", bound=Startable)
_Joining = TypeVar("_Joining", bound=Startable, contravariant=True)


class Crew(Protocol[_Joining]):
    """The workers that serve: rollout.pool.RolloutPool, reward.pool.RewardPool."""

    def members(self) -> Sequence[Present]:
        """Alive and staying."""
        ...

    def take_dead(self) -> Sequence[Present]:
        """Removes and returns the dead."""
        ...

    def add_worker(self, worker: _Joining, /) -> None: ...
    async def remove_worker(self, name: str, /) -> None:
        """It is no member any more at once; returns when it has finished what it has and is stopped."""
        ...


class Fleet(Generic[W]):
    """Keeps `crew` at the wanted number of workers. Call `adjust` between two steps, in the event loop."""

    def __init__(
        self,
        crew: Crew[W],
        spawn: Callable[[int], W] | None,
        *,
        first_index: int,
        start_timeout_s: float,
        failures: tuple[type[Exception], ...],
        max_restarts: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`spawn(index)`: a new worker named after `index`, counted from `first_index`: no name is used twice. None: a
        fleet that only loses workers, for one that starts beside the steps would need a card that others are on.

        `failures`: what a start raises that did not succeed; anything else is a bug and raised by `adjust`.
        `max_restarts`: of one place (cluster/restarts.py), after which the fleet is smaller by it until the wanted
        number changes.
        """
        self._max_restarts, self._clock = max_restarts, clock
        self._places: dict[str, Restarts] = {}  # by the name of who is in it
        self._vacant: list[tuple[float, Restarts]] = []  # not to be filled before
        self._given_up = 0
        self._crew, self._spawn, self._start_timeout_s, self._failures = crew, spawn, start_timeout_s, failures
        self._next_index = first_index
        self._starting: dict[asyncio.Task[None], W] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._unproven: set[str] = set()  # who has joined and not served yet
        self._failed = 0
        self._wanted = 0
        self._reported = (0, 0)

    @property
    def size(self) -> int:
        """Members now."""
        return len(self._crew.members())

    @property
    def expects(self) -> bool:
        """A worker is on its way to the crew: it is starting, or will be when `adjust` is called next or later."""
        if self._spawn is None or self._failed >= MAX_FAILED_STARTS:
            return False
        return bool(self._starting) or self.size < self._wanted - self._given_up

    def adjust(self, wanted: int) -> None:
        """Take in who is ready, end who is dead, start or let go what is missing or too many. Waits for nobody."""
        if wanted != self._wanted:
            self._wanted, self._failed, self._given_up = wanted, 0, 0
            self._vacant = []
        for member in self._crew.take_dead():
            self._failed += member.name in self._unproven and not member.served
            self._unproven.discard(member.name)
            self._in_background(member.stop())  # its process may hang
            if self._spawn is not None:
                self._vacate(member)
        if self._spawn is None:
            self._say_fixed(wanted)
            return
        proven = {member.name for member in self._crew.members() if member.served} & self._unproven
        if proven:
            self._failed, self._unproven = 0, self._unproven - proven
        self._take_in()
        present, wanted = self.size, wanted - self._given_up
        missing = wanted - present - len(self._starting)
        for place in self._due(missing) if self._failed < MAX_FAILED_STARTS else ():
            self._begin_start(self._spawn, place)
        for task, worker in list(self._starting.items())[max(0, wanted - present) :]:
            self._give_up(task, worker)
        for leaving in self._crew.members()[max(1, wanted) :]:
            logger.warning("%s leaves: %d are wanted", leaving.name, wanted)
            self._places.pop(leaving.name, None)
            self._in_background(self._crew.remove_worker(leaving.name))

    def close(self) -> None:
        """End what is still starting, and wait for none that leaves."""
        for task, worker in list(self._starting.items()):
            self._give_up(task, worker)
        for ending in self._ending:
            ending.cancel()

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("a worker that left did not end cleanly: %s", error)

    def _say_fixed(self, wanted: int) -> None:
        if (wanted, self.size) != self._reported and wanted != self.size:
            logger.warning(
                "%d workers are wanted and %d are left: on shared cards none joins or leaves", wanted, self.size
            )
        self._reported = (wanted, self.size)

    def _vacate(self, member: Present) -> None:
        """Its place is to be filled again, after a while or not at all."""
        place = self._places.pop(member.name, None) or Restarts(self._max_restarts, self._clock)
        pause = None if member.given_up else place.died()
        if pause is not None:
            self._vacant.append((self._clock() + pause, place))
            if pause:
                logger.warning("%s is replaced by another worker after %g s", member.name, pause)
            return
        self._given_up += 1
        if not member.given_up:  # else it was reported when it happened
            logger.warning("the place of %s: %s", member.name, place.given_up(member.reason))
        logger.warning("the run goes on with at most %d of %d workers", self._wanted - self._given_up, self._wanted)

    def _due(self, missing: int) -> list[Restarts]:
        """Places to be filled now: vacant ones whose pause is over, and new ones."""
        self._vacant = self._vacant[: max(0, missing)]
        new = missing - len(self._vacant)
        now = self._clock()
        due = [place for at, place in self._vacant if at <= now]
        self._vacant = [(at, place) for at, place in self._vacant if at > now]
        return due + [Restarts(self._max_restarts, self._clock) for _ in range(new)]

    def _begin_start(self, spawn: Callable[[int], W], place: Restarts) -> None:
        worker = spawn(self._next_index)
        self._next_index += 1
        self._places[worker.name] = place
        self._starting[asyncio.create_task(self._bring_up(worker))] = worker

    async def _bring_up(self, worker: W) -> None:
        reported = False
        while not await worker.placed(ROOM_LOOK_S):
            if not reported:
                logger.warning("%s waits for room in the cluster", worker.name)
            reported = True
        await worker.start(self._start_timeout_s)

    def _give_up(self, task: asyncio.Task[None], worker: W) -> None:
        del self._starting[task]
        self._places.pop(worker.name, None)
        task.cancel()
        worker.kill()

    def _take_in(self) -> None:
        for task in [task for task in self._starting if task.done()]:
            worker = self._starting.pop(task)
            error = task.exception()
            if error is None:
                self._crew.add_worker(worker)
                self._unproven.add(worker.name)
                logger.warning("%s joins", worker.name)
                continue
            if not isinstance(error, self._failures):
                raise error
            worker.kill()
            self._failed += 1
            self._vacant.append((self._clock(), self._places.pop(worker.name)))
            going_on = "the run continues without it" if self._failed >= MAX_FAILED_STARTS else "another is started"
            logger.warning("%s did not start (%s); %s", worker.name, error, going_on)
