"""One worker of the pool: what it may do, what it has to do. Pure asyncio over a handle Protocol."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol

from raylign.rollout.interfaces import (
    Canary,
    EngineDead,
    GenerationRequest,
    GroupHandle,
    Ref,
    TransferLink,
    VerifyReport,
    WeightManifest,
)
from raylign.rollout.load import LoadClock

logger = logging.getLogger(__name__)


class WorkerHandle(Protocol):
    """A rollout worker from afar. Every call has its own deadline and raises EngineDead or WeightUpdateError."""

    @property
    def name(self) -> str: ...
    async def generate(self, requests: Sequence[GenerationRequest]) -> list[GroupHandle]: ...
    async def begin_update(self, manifest: WeightManifest) -> None: ...
    async def load_bucket(self, bucket: Ref) -> None: ...
    async def join_transfer(self, link: TransferLink) -> None: ...
    async def receive_weights(self) -> None: ...
    async def finish_update(self, canaries: Sequence[Canary]) -> VerifyReport: ...
    async def resume(self, version: int) -> None: ...
    async def sleep(self) -> None: ...
    async def ping(self) -> None: ...
    async def stop(self) -> None: ...


class MemberState(Enum):
    """What a worker may do."""

    JOINING = "joining"  # no verified publication yet
    UPDATING = "updating"
    SERVING = "serving"
    ASLEEP = "asleep"  # its cards are the learners'; the next publication wakes it
    QUARANTINED = "quarantined"  # alive, its weights are not known to be right
    LEAVING = "leaving"  # finishes what it has, takes nothing new
    DEAD = "dead"


class Member:
    """A worker in the pool: its state follows its weight updates (trainer.loops.publish drives them)."""

    def __init__(
        self, handle: WorkerHandle, moved: Callable[[], None] = lambda: None, load: LoadClock | None = None
    ) -> None:
        """`moved` is called whenever the state changes or a call has ended; `load` counts workers with work."""
        self._handle = handle
        self._load = load or LoadClock()
        self._moved = moved
        self.state = MemberState.JOINING
        self.reason = "no verified publication yet"
        self.served = False  # ever, a verified version
        self.outstanding_tokens = 0
        self.outstanding_samples = 0
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def name(self) -> str:
        """The worker's name."""
        return self._handle.name

    @property
    def given_up(self) -> bool:
        """Never: another worker comes in its place, or none (cluster/fleet.py)."""
        return False

    def has_room(self, samples: int, limit: int) -> bool:
        """True when it serves and `samples` more stay within `limit`; an idle worker takes any job."""
        fits = not self.outstanding_samples or self.outstanding_samples + samples <= limit
        return self.state is MemberState.SERVING and fits

    def assign(self, requests: Sequence[GenerationRequest]) -> asyncio.Task[list[GroupHandle]]:
        """Start sampling `requests`; they count as outstanding from now until the task ends, however it ends."""
        tokens, samples = sum(map(_tokens, requests)), sum(len(r.keys) for r in requests)
        self.outstanding_tokens += tokens
        self.outstanding_samples += samples
        if self.idle.is_set():
            self._load.change(1)
        self.idle.clear()

        def release(_: object) -> None:
            self.outstanding_tokens -= tokens
            self.outstanding_samples -= samples
            if not self.outstanding_samples and not self.idle.is_set():
                self._load.change(-1)
                self.idle.set()
            self._moved()

        task = asyncio.create_task(self._generate(requests))
        task.add_done_callback(release)
        return task

    async def _generate(self, requests: Sequence[GenerationRequest]) -> list[GroupHandle]:
        """Raises EngineDead when other samples than the requested come back."""
        handles = await self._handle.generate(requests)
        if [tuple(meta.key for meta in handle.metas) for handle in handles] != [r.keys for r in requests]:
            raise EngineDead(f"{self.name} answered with other samples than requested")
        return handles

    async def begin_update(self, manifest: WeightManifest) -> None:
        """Stop serving and announce the tensors."""
        self._move(MemberState.UPDATING, f"updating to version {manifest.version}")
        await self._handle.begin_update(manifest)

    async def load_bucket(self, bucket: Ref) -> None:
        """Pass one bucket on."""
        await self._handle.load_bucket(bucket)

    async def join_transfer(self, link: TransferLink) -> None:
        """Meet the learner and the other engines."""
        await self._handle.join_transfer(link)

    async def receive_weights(self) -> None:
        """Load what the learner broadcasts."""
        await self._handle.receive_weights()

    async def finish_update(self, canaries: Sequence[Canary]) -> VerifyReport:
        """What the worker found."""
        return await self._handle.finish_update(canaries)

    async def resume(self, version: int) -> None:
        """Serve `version`."""
        await self._handle.resume(version)
        self.served = True
        self._move(MemberState.SERVING, "")

    async def sleep(self) -> None:
        """Take no requests, and give the cards back."""
        self._move(MemberState.ASLEEP, "its cards are the learners'")
        await self._handle.sleep()

    def quarantine(self, reason: str) -> None:
        """Take no requests until a later publication verifies this worker."""
        self._move(MemberState.QUARANTINED, reason)

    def die(self, reason: str) -> None:
        """It does not come back. Said once, however many of its calls fail."""
        if self.state is not MemberState.DEAD:
            logger.warning("%s is out of the pool: %s", self.name, reason)
        self._move(MemberState.DEAD, reason)

    def leave(self) -> None:
        """Take nothing new."""
        self._move(MemberState.LEAVING, "removed from the pool")

    async def ping(self) -> None:
        """Raises EngineDead when the worker does not answer."""
        await self._handle.ping()

    async def stop(self) -> None:
        """End the worker."""
        await self._handle.stop()

    def _move(self, state: MemberState, reason: str) -> None:
        if self.state is not MemberState.DEAD:
            self.state, self.reason = state, reason
            self._moved()


def _tokens(request: GenerationRequest) -> int:
    """Most tokens a request can take: the prompt once (its samples share it) and every response in full."""
    return len(request.prompt.token_ids) + len(request.keys) * request.sampling.max_new_tokens
