"""Learners and engines that share cards take turns on them.

    engines' turn                        learners' turn
    ─────────────                        ──────────────
    rollouts, rewards, reference  ──►  engines sleep (weights and cache dropped), optimizer state comes back
             ▲                           log-probs, values, updates, weights staged, canaries
             │                                    │
             └── cache back, canaries, resume ◄── optimizer state leaves, engines' weights back, buckets, verified

Which half of a change is under way is one word, so whatever fails there, the next change begins with emptying the
cards. Who cannot leave a card is ended before the other side comes: an engine that does not fall asleep leaves the run,
a learner that does not is a RoleError, and all learners are started again (app/launch/online.py). Working weights stay
on a learner's cards in both turns: a reference that is the policy without its adapters needs them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from enum import Enum
from typing import Protocol

from raylign.rollout.interfaces import EngineDead, WeightUpdateError


class Turn(Enum):
    """Whose the cards are."""

    ENGINES = "the engines'"
    LEARNERS = "the learners'"
    NOBODY = "between two turns"


class CardTurns(Protocol):
    """What the loop and the publication ask for."""

    async def learners(self) -> None:
        """Afterwards learners may train. No rollout may be under way."""
        ...

    async def engines(self) -> None:
        """Afterwards engines may be published to, which wakes them."""
        ...


class OwnCards:
    """Everybody has cards of their own: nothing to change."""

    async def learners(self) -> None:
        """At once."""

    async def engines(self) -> None:
        """At once."""


OWN_CARDS = OwnCards()


class StateHolder(Protocol):
    """A learner: its masters, moments and gradients can wait on the host."""

    async def offload_state(self) -> None: ...
    async def reload_state(self) -> None: ...


class Sleeper(Protocol):
    """A rollout worker, as the pool knows it."""

    @property
    def name(self) -> str: ...
    async def sleep(self) -> None: ...
    async def stop(self) -> None: ...
    def die(self, reason: str) -> None: ...


class Crew(Protocol):
    """rollout.pool.RolloutPool."""

    def members(self) -> Sequence[Sleeper]:
        """Alive and staying."""
        ...

    def take_dead(self) -> Sequence[Sleeper]:
        """Removes and returns the dead."""
        ...


class TimeSharing:
    """One machine for all cards of a run. Begins in the engines' turn, with no learner there."""

    def __init__(self, crew: Crew, *, timeout_s: float) -> None:
        """`timeout_s`: of one engine's falling asleep."""
        self._crew, self._timeout_s = crew, timeout_s
        self._holders: tuple[StateHolder, ...] = ()
        self.turn = Turn.ENGINES

    async def clear(self) -> None:
        """Before learners are started, or started again: they find the cards empty, and it is their turn."""
        self._holders = ()
        await self.learners()

    def admit(self, *holders: StateHolder) -> None:
        """Learners that have been started, with all their state. Raises RuntimeError unless it is their turn."""
        if self.turn is not Turn.LEARNERS:
            raise RuntimeError(f"learners were started on cards that are {self.turn.value}; call clear() first")
        self._holders = holders

    async def learners(self) -> None:
        """Raises RoleError when a learner does not come back."""
        if self.turn is Turn.LEARNERS:
            return
        self.turn = Turn.NOBODY
        await asyncio.gather(*(self._put_to_sleep(engine) for engine in self._crew.members()))
        # The process of one that died, now or in the engines' turn, may still hold the memory that the learners want.
        await asyncio.gather(*(engine.stop() for engine in self._crew.take_dead()))
        await _all(holder.reload_state() for holder in self._holders)
        self.turn = Turn.LEARNERS

    async def engines(self) -> None:
        """Raises RoleError when a learner does not leave: no engine is woken then."""
        if self.turn is Turn.ENGINES:
            return
        self.turn = Turn.NOBODY
        await _all(holder.offload_state() for holder in self._holders)
        self.turn = Turn.ENGINES

    async def _put_to_sleep(self, engine: Sleeper) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await engine.sleep()
        except (EngineDead, WeightUpdateError, TimeoutError) as error:
            cause = f"not within sync.timeout_s={self._timeout_s:g} s" if isinstance(error, TimeoutError) else error
            engine.die(f"{engine.name} did not give its card back: {cause}")


async def _all(moves: Iterable[Awaitable[None]]) -> None:
    """Every move has ended when this returns or raises: a rank that is half-way is not left to itself."""
    results = await asyncio.gather(*moves, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
