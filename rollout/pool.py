"""Elastic rollout workers behind one `generate`. Pure asyncio over a handle Protocol: no Ray here.

A prompt and all its samples go to one worker, the one with the fewest outstanding tokens. When a worker dies its
unfinished prompts go to others; the first result of a prompt wins, so a sample key is counted once. A worker is given
work only between a verified publication and the next; while all are being updated, prompts wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from raylign.data.types import Prompt, SampleKey, SamplingParams
from raylign.rollout.interfaces import EngineDead, GenerationRequest, GroupHandle, NoWorkerLeft, WeightUpdateError
from raylign.rollout.load import Load, LoadClock
from raylign.rollout.member import Member, MemberState, WorkerHandle

logger = logging.getLogger(__name__)

CALLS_PER_WORKER = 16
"""Calls a worker's share of one step is cut into: more lose less when it dies, fewer cost the controller less."""


CALLS_IN_A_FULL_WORKER = 32
"""Calls at least that a worker's limit is made of: all samples of a call count until its longest one ends."""

QUEUE_FACTOR = 4
"""What the pool may give a worker, over what the engine runs at once. With lengths that vary as much as their mean, a
third of a call's eight samples are still running on average: below a factor of 3 the engine runs empty."""

PROBE_EVERY_S = 10.0
"""Pause between health checks while a step generates."""

_LOOK_S = 1.0
"""How often a wait for results looks up: a worker that `probe` found dead meanwhile is given up this soon."""


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """Figures since the pool was made."""

    workers: int
    serving: int
    requeued_prompts: int
    deaths: int


@dataclass(slots=True)
class _Job:
    """Prompts that travel together."""

    indices: list[int]
    attempts: int = 0
    causes: list[str] = field(default_factory=list)


class _Results:
    """Groups by number; the first one of a number counts."""

    def __init__(self, arrived: Callable[[int, GroupHandle], None] | None) -> None:
        self._groups: dict[int, GroupHandle] = {}
        self._arrived = arrived

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, number: int, group: GroupHandle) -> None:
        if number in self._groups:
            return
        self._groups[number] = group
        if self._arrived is not None:
            self._arrived(number, group)

    def in_order(self) -> list[GroupHandle]:
        return [self._groups[number] for number in range(len(self._groups))]


_MAY_SERVE = (MemberState.SERVING, MemberState.UPDATING)

_Call = asyncio.Task[list[GroupHandle]]
_Running = dict[_Call, tuple[_Job, Member]]
_Events = asyncio.Queue[_Call | None]
"""What a step waits for: its calls as they end, and None when a worker may have room. Waiting on all tasks at once
would cost each event the number of running calls."""


class RolloutPool:
    """Implements trainer.loops.interfaces.RolloutPool; membership may change while it generates."""

    def __init__(
        self,
        workers: Sequence[WorkerHandle],
        *,
        max_concurrent: int,
        timeout_s: float,
        max_attempts: int = 3,
        probe_every_s: float = PROBE_EVERY_S,
    ) -> None:
        """`max_concurrent`: samples given to one worker at a time; `timeout_s`: of one `generate`, retries included."""
        self._listeners: set[_Events] = set()
        self._queues: list[deque[_Job]] = []  # of every `generate` under way, the one that began first in front
        self._load = LoadClock()
        self._members = [Member(worker, self._notify, self._load) for worker in workers]
        self._max_concurrent, self._timeout_s, self._max_attempts = max_concurrent, timeout_s, max_attempts
        self._probe_every_s = probe_every_s
        self._expected: Callable[[], bool] = lambda: False
        self._requeued = 0
        self._departed_dead, self._departed = 0, ""

    def members(self) -> tuple[Member, ...]:
        """Workers that can be published to: alive and staying."""
        gone = (MemberState.DEAD, MemberState.LEAVING)
        return tuple(member for member in self._members if member.state not in gone)

    def counts(self) -> PoolCounts:
        """Present size and what happened so far."""
        serving = sum(member.state is MemberState.SERVING for member in self._members)
        return PoolCounts(len(self.members()), serving, self._requeued, self._departed_dead + len(self._dead()))

    def load(self) -> Load:
        """How long the workers have had something to do since the pool was made."""
        return self._load.total()

    def add_worker(self, worker: WorkerHandle) -> None:
        """It serves after the next verified publication. Raises ValueError for a name that is taken."""
        if any(member.name == worker.name for member in self.members()):
            raise ValueError(f"a rollout worker named {worker.name} is in the pool already; give the new one another")
        self._members.append(Member(worker, self._notify, self._load))

    async def remove_worker(self, name: str) -> None:
        """Let it finish what it has, then stop it. Raises KeyError for no such name."""
        member = next((member for member in self.members() if member.name == name), None)
        if member is None:
            raise KeyError(f"no rollout worker is named {name!r}; there are {[m.name for m in self.members()]}")
        member.leave()
        try:
            async with asyncio.timeout(self._timeout_s):
                await member.idle.wait()
        except TimeoutError:
            logger.warning("%s is stopped with %d samples running", name, member.outstanding_samples)
        if member in self._members:  # else it died meanwhile, and take_dead has it
            self._members.remove(member)
        await member.stop()

    def expect(self, expected: Callable[[], bool]) -> None:
        """`expected()`: another worker will join. A step in which none serves waits for it, within its deadline."""
        self._expected = expected

    async def probe(self) -> None:
        """Ping every member; those that do not answer are dead."""
        members = self.members()
        for member, result in zip(members, await asyncio.gather(*(_answer(m) for m in members)), strict=True):
            if result is not None:
                member.die(result)

    def take_dead(self) -> tuple[Member, ...]:
        """Remove the dead workers from the pool and return them, for whoever ends their processes."""
        dead = self._dead()
        self._members = [member for member in self._members if member not in dead]
        self._departed_dead += len(dead)
        self._departed = _states(dead) or self._departed
        return dead

    def _dead(self) -> tuple[Member, ...]:
        return tuple(member for member in self._members if member.state is MemberState.DEAD)

    async def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        epoch: int,
        samples_per_prompt: int,
        sampling: SamplingParams,
        arrived: Callable[[int, GroupHandle], None] | None = None,
    ) -> list[GroupHandle]:
        """One handle a prompt, in order; `arrived` gets each, with its number, as soon as it is there.

        Raises ValueError for top_p other than 1 (the trainer's log-probs know no nucleus) and for a repeated prompt;
        NoWorkerLeft when all workers have died; EngineDead when the deadline passes, no worker serves, or a prompt
        failed on `max_attempts` workers.
        """
        if sampling.top_p != 1.0:
            raise ValueError(f"top_p={sampling.top_p:g}: rollouts are drawn with top_p=1, as trainer log-probs assume")
        requests = [_request(prompt, epoch, samples_per_prompt, sampling) for prompt in prompts]
        if len({request.keys for request in requests}) != len(requests):
            raise ValueError("a prompt occurs twice in one rollout step: its samples could not be distinguished")
        watch = asyncio.create_task(self._watch())
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._run(requests, _Results(arrived))
        except TimeoutError as error:
            if not self._may_serve():
                raise self._nobody() from error
            late = ", ".join(
                f"{m.name} ({m.outstanding_samples} samples)" for m in self._members if not m.idle.is_set()
            )
            raise EngineDead(f"rollouts missed rollout.timeout_s={self._timeout_s:g} s; late: {late}") from error
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        """While a step generates: an engine that hangs is found long before the step's deadline."""
        while True:
            await asyncio.sleep(self._probe_every_s)
            await self.probe()

    async def _run(self, requests: Sequence[GenerationRequest], results: _Results) -> list[GroupHandle]:
        queue = deque(self._jobs(requests))
        running: _Running = {}
        events: _Events = asyncio.Queue()
        self._listeners.add(events)
        self._queues.append(queue)
        started = asyncio.get_running_loop().time()
        try:
            while len(results) < len(requests):
                self._dispatch(queue, running, requests, events)
                # Those that serve may be full with another step's prompts, those that are updated will serve again.
                if not running and not self._may_serve() and not self._expected():
                    raise self._nobody()
                for task in await _next(events):
                    if task in running:
                        job, member = running.pop(task)
                        self._collect(task, job, member, results, queue)
                self._abandon(running, queue, started)
        finally:
            self._listeners.discard(events)
            self._queues = [other for other in self._queues if other is not queue]
            for task in running:
                task.cancel()
            self._notify()
        return results.in_order()

    def _notify(self) -> None:
        """A worker changed its state or has room again: every step that waits looks anew."""
        for events in self._listeners:
            if events.empty():
                events.put_nowait(None)

    def _jobs(self, requests: Sequence[GenerationRequest]) -> Iterator[_Job]:
        num_prompts = len(requests)
        samples = max((len(request.keys) for request in requests), default=1)
        most = self._max_concurrent // CALLS_IN_A_FULL_WORKER // samples
        size = max(1, min(most, num_prompts // (CALLS_PER_WORKER * max(1, len(self.members())))))
        for start in range(0, num_prompts, size):
            yield _Job(list(range(start, min(start + size, num_prompts))))

    def _dispatch(
        self, queue: deque[_Job], running: _Running, requests: Sequence[GenerationRequest], events: _Events
    ) -> None:
        """Give out jobs while a serving worker has room, each to the one with the fewest outstanding tokens.

        A later step's jobs wait for those of every earlier one, which the training needs first.
        """
        while queue and not self._earlier_waits(queue):
            batch = [requests[index] for index in queue[0].indices]
            samples = sum(len(request.keys) for request in batch)
            free = [member for member in self._members if member.has_room(samples, self._max_concurrent)]
            if not free:
                return
            member = min(free, key=lambda m: (m.outstanding_tokens, m.name))
            task = member.assign(batch)
            task.add_done_callback(events.put_nowait)
            running[task] = (queue.popleft(), member)
            if not queue:
                self._notify()  # the next step's turn

    def _earlier_waits(self, queue: deque[_Job]) -> bool:
        """True while a `generate` that began before this one has jobs that no worker has."""
        for other in self._queues:
            if other is queue:
                return False
            if other:
                return True
        return False

    def _collect(
        self,
        task: asyncio.Task[list[GroupHandle]],
        job: _Job,
        member: Member,
        results: _Results,
        queue: deque[_Job],
    ) -> None:
        """Keep the results of a finished call, or hand its prompts on. Other errors (a bad prompt) are raised."""
        try:
            handles = task.result()
        except EngineDead as error:
            member.die(str(error))
            self._requeue(job, str(error), queue)
        except WeightUpdateError as error:
            member.quarantine(str(error))
            self._requeue(job, str(error), queue)
        else:
            for index, handle in zip(job.indices, handles, strict=True):
                results.add(index, handle)

    def _requeue(self, job: _Job, cause: str, queue: deque[_Job]) -> None:
        job.attempts += 1
        job.causes.append(cause)
        if job.attempts >= self._max_attempts:
            raise EngineDead(f"{len(job.indices)} prompts failed on {job.attempts} workers: {'; '.join(job.causes)}")
        self._requeued += len(job.indices)
        queue.append(job)

    def _abandon(self, running: _Running, queue: deque[_Job], started: float) -> None:
        """Do not wait for the other calls to a worker that died (or was found dead by `probe`).

        Nor, after half of the step's time, for one that answers health checks and nothing else while another worker
        is idle: the other half is left to do its work elsewhere.
        """
        late = asyncio.get_running_loop().time() - started > self._timeout_s / 2
        if late and any(member.state is MemberState.SERVING and member.idle.is_set() for member in self._members):
            for member in {member for _, member in running.values()}:
                member.die(f"{member.name}: no answer within half of rollout.timeout_s while another worker is idle")
        if not self._dead():
            return
        for task, (job, member) in list(running.items()):
            if member.state is MemberState.DEAD and not task.done():
                task.cancel()
                del running[task]
                self._requeue(job, member.reason, queue)

    def _may_serve(self) -> bool:
        return any(member.state in _MAY_SERVE for member in self._members)

    def _nobody(self) -> EngineDead:
        kind = EngineDead if self.members() else NoWorkerLeft
        return kind(f"no rollout worker serves: {_states(self._members) or self._departed or 'the pool is empty'}")


def _states(members: Iterable[Member]) -> str:
    return "; ".join(f"{m.name} {m.state.value} ({m.reason})" for m in members)


def _request(prompt: Prompt, epoch: int, samples: int, sampling: SamplingParams) -> GenerationRequest:
    keys = tuple(SampleKey(epoch, prompt.prompt_id, k) for k in range(samples))
    return GenerationRequest(prompt, keys, sampling)


async def _next(events: _Events) -> list[_Call]:
    """Every call that has ended; after at most _LOOK_S, none."""
    ended: list[_Call | None] = []
    try:
        ended.append(await asyncio.wait_for(events.get(), _LOOK_S))
    except TimeoutError:
        return []
    while not events.empty():
        ended.append(events.get_nowait())
    return [task for task in ended if task is not None]


async def _answer(member: Member) -> str | None:
    try:
        await member.ping()
    except EngineDead as error:
        return str(error)
    return None
