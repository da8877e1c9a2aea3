"""How the weights of a version come to the workers of one publication: through the object store, or by broadcast.

Between the pause and the comparison of trainer/loops/publish.py; whichever it is, what arrived is compared there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from raylign.rollout.gate import gather_or_cancel
from raylign.rollout.interfaces import Canary, Ref, TransferLink, VerifyReport, WeightManifest, WeightUpdateError
from raylign.trainer.loops.interfaces import WeightSource

T = TypeVar("T")
logger = logging.getLogger(__name__)

BUCKETS_UNDER_WAY = 2
"""Calls of `load_bucket` to one worker at a time."""


class WeightSink(Protocol):
    """One rollout worker as the receiver of weights."""

    @property
    def name(self) -> str: ...
    async def ping(self) -> None: ...
    async def begin_update(self, manifest: WeightManifest) -> None: ...
    async def load_bucket(self, bucket: Ref) -> None: ...
    async def join_transfer(self, link: TransferLink) -> None: ...
    async def receive_weights(self) -> None: ...
    async def finish_update(self, canaries: Sequence[Canary]) -> VerifyReport: ...
    async def resume(self, version: int) -> None: ...

    def quarantine(self, reason: str) -> None:
        """The worker takes no requests until a later publication verifies it."""
        ...

    def die(self, reason: str) -> None:
        """The worker is gone: it is not published to again."""
        ...


class Steps(Protocol):
    """Calls with the publication's deadline; it keeps account of who failed."""

    async def workers(
        self, members: Sequence[WeightSink], call: Callable[[WeightSink], Awaitable[object]], verb: str
    ) -> Sequence[WeightSink]:
        """`call` on all of `members`; those that did it."""
        ...

    async def source(self, call: Awaitable[T], what: str) -> T:
        """Raises RoleError when the learner is late."""
        ...


class Transport(Protocol):
    """One way to move weights."""

    async def move(self, members: Sequence[WeightSink], steps: Steps) -> Sequence[WeightSink]:
        """Those of `members`, all of which wait for the announced weights, that have them now."""
        ...


class ThroughStore:
    """Each worker maps the buckets that lie in the object store."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source

    async def move(self, members: Sequence[WeightSink], steps: Steps) -> Sequence[WeightSink]:
        """Two buckets a worker at once: one is written to memory that the engine can map while it loads the other."""
        buckets = await steps.source(self._source.buckets(), "weights")

        async def load(worker: WeightSink) -> None:
            left = iter(buckets)

            async def one_by_one() -> None:
                for bucket in left:
                    await worker.load_bucket(bucket)

            await gather_or_cancel([one_by_one() for _ in range(BUCKETS_UNDER_WAY)])

        return await steps.workers(members, load, "load_bucket")


class BroadcastSource(Protocol):
    """The learner's side of a broadcast."""

    async def open_transfer(self, num_workers: int) -> TransferLink:
        """Begin a new one; what is left of another is abandoned."""
        ...

    async def join_transfer(self) -> str:
        """Meet the workers. Why it did not come about; empty when all are there."""
        ...

    async def send_weights(self) -> str:
        """Broadcast the announced weights. Why it broke off; empty when every worker has them."""
        ...


class Broadcast:
    """The learner's rank 0 sends once, to the ranks of all engines together.

    A collective is everybody's: where one worker fails in it, none has the weights, and the publication's second
    attempt is made with those that answer, by a group of their own.
    """

    def __init__(self, source: BroadcastSource) -> None:
        self._source = source

    async def move(self, members: Sequence[WeightSink], steps: Steps) -> Sequence[WeightSink]:
        """Rendezvous and transfer, each with its deadline on both sides."""
        link = await steps.source(self._source.open_transfer(len(members)), "rendezvous")
        links = {id(worker): link.of(index) for index, worker in enumerate(members)}
        why, joined = await _together(
            steps.source(self._source.join_transfer(), "rendezvous"),
            steps.workers(members, lambda worker: worker.join_transfer(links[id(worker)]), "join_transfer"),
        )
        if why or len(joined) < len(members):

            async def refuse(_: WeightSink) -> None:
                raise WeightUpdateError(f"no transfer without all of its {len(members)} workers: {why or 'one failed'}")

            return await steps.workers(joined, refuse, "join_transfer")
        why, received = await _together(
            steps.source(self._source.send_weights(), "broadcast"),
            steps.workers(joined, lambda worker: worker.receive_weights(), "receive_weights"),
        )
        if why and received:
            logger.warning("the learner has not seen the end of the broadcast: %s", why)
        return received


async def _together(
    learner: Awaitable[str], workers: Awaitable[Sequence[WeightSink]]
) -> tuple[str, Sequence[WeightSink]]:
    """Both sides; when the learner fails nobody waits for the workers."""
    sent, received = asyncio.ensure_future(learner), asyncio.ensure_future(workers)
    try:
        return await asyncio.gather(sent, received)
    finally:
        sent.cancel()
        received.cancel()
