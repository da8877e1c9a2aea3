"""Reward replicas as Ray actors, and the facade in front of them.

A replica gathers what concurrent calls bring until it has `micro_batch_tokens`, or nothing came for a moment, and
scores it in one go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from raylign.cluster.errors import FailureKind
from raylign.cluster.pages import KeptPages
from raylign.cluster.rank import RankInfo
from raylign.cluster.worker_group import WorkerGroup, classify
from raylign.conf.schema import Device, RewardConfig
from raylign.data.types import FinishReason, RewardOutcome, RolloutGroup
from raylign.reward.dispatch import PieceRefused, ReplicaDown, dispatch
from raylign.reward.interfaces import ShapingState
from raylign.reward.scorer import ComposedScorer
from raylign.reward.shaping import EMPTY_STATE, Response, Shaping, shape
from raylign.reward.sources import RewardSources
from raylign.rollout.interfaces import GroupHandle

GATHER_S = 0.005
"""How long a replica waits for more work before it scores a batch that is not full."""

MAX_CONCURRENT_CALLS = 64

RESTART_LOOK_S = 0.5
"""Pause between two questions whether a replica is back."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Request:
    """One caller's groups, waiting in a replica."""

    groups: list[RolloutGroup]
    num_tokens: int
    answer: asyncio.Future[list[RewardOutcome]]


class RewardServer:
    """One replica. An async actor: calls overlap, scoring runs one batch at a time in a thread."""

    def __init__(self, info: RankInfo, config: RewardConfig, device: Device, sources: RewardSources) -> None:
        info.open_log()
        self._sources = sources
        self._config = config
        self._device = device
        self._queue: asyncio.Queue[_Request] = asyncio.Queue()
        self._serving: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Load the model. A replica that Ray restarted does it on its first call."""
        async with self._starting:
            if self._serving is None:
                scorer = await asyncio.to_thread(ComposedScorer, self._config, self._device, self._sources)
                self._serving = asyncio.create_task(self._serve(scorer))

    async def score(self, refs: Sequence[ray.ObjectRef]) -> list[RewardOutcome]:
        """One raw outcome a completion of the groups behind `refs`, in order."""
        await self.start()
        async with asyncio.timeout(self._config.timeout_s):
            groups = list(await asyncio.gather(*refs))
            answer: asyncio.Future[list[RewardOutcome]] = asyncio.get_running_loop().create_future()
            self._queue.put_nowait(_Request(groups, _num_tokens(groups), answer))
            return await answer

    async def _serve(self, scorer: ComposedScorer) -> None:
        pages = KeptPages()
        while True:
            batch = await self._gather()
            if not await _answer(scorer, batch) and len(batch) > 1:
                for request in batch:  # one of them is bad: the others must not fail with it
                    await _answer(scorer, [request])
            pages.after_step()

    async def _gather(self) -> list[_Request]:
        batch = [await self._queue.get()]
        while sum(request.num_tokens for request in batch) < self._config.micro_batch_tokens:
            try:
                batch.append(await asyncio.wait_for(self._queue.get(), GATHER_S))
            except TimeoutError:
                break
        return batch


class RewardPool:
    """Facade over the replicas: a loops.RewardPool."""

    def __init__(self, replicas: Sequence[ActorHandle], config: RewardConfig, shaping: Shaping) -> None:
        self._replicas = tuple(replicas)
        self._down: set[int] = set()  # ranks whose last call found no process
        self._config = config
        self._shaping = shaping
        self._state = EMPTY_STATE

    @classmethod
    async def start(
        cls,
        config: RewardConfig,
        device: Device,
        *,
        shaping: Shaping,
        options: Sequence[Mapping[str, object]],
        env_vars: Sequence[Mapping[str, str]],
        timeout_s: float,
        log_dir: str = "",
        sources: RewardSources | None = None,
    ) -> RewardPool:
        """Start one replica for each of `options` (from a Reservation) and wait for all.

        Ray restarts a replica that dies: it has no state. Raises RoleError naming a replica that did not start.
        """
        remote = ray.remote(RewardServer)
        replicas = [
            remote.options(
                max_restarts=-1, max_concurrency=MAX_CONCURRENT_CALLS, runtime_env={"env_vars": dict(env)}, **where
            ).remote(RankInfo("reward", rank, len(options), log_dir), config, device, sources or RewardSources())
            for rank, (where, env) in enumerate(zip(options, env_vars, strict=True))
        ]
        pool = cls(replicas, config, shaping)
        try:
            group = WorkerGroup("reward", replicas)
            await group.call(lambda actor, _: actor.start.remote(), verb="start", timeout_s=timeout_s)
        except BaseException:
            pool.stop()
            raise
        return pool

    @property
    def state(self) -> ShapingState:
        """The normaliser's statistics, for the checkpoint."""
        return self._state

    def restore(self, state: ShapingState) -> None:
        """Continue with saved statistics."""
        self._state = state

    async def score(self, groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
        """One raw outcome a completion, in order. A sample that fails, fails by name."""
        return await dispatch(
            groups,
            [(partial(self._ask, rank), partial(self._ready, rank)) for rank in range(len(self._replicas))],
            piece_tokens=piece_tokens(self._config, groups, len(self._replicas)),
            timeout_s=self._config.timeout_s,
        )

    def shape(self, groups: Sequence[GroupHandle], outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        """A whole step's outcomes as they are trained on; moves the normaliser."""
        responses = [
            Response(meta.response_tokens, meta.finish_reason is FinishReason.LENGTH)
            for group in groups
            for meta in group.metas
        ]
        shaped, self._state = shape(outcomes, responses, self._shaping, self._state)
        return shaped

    def stop(self) -> None:
        """Kill every replica."""
        for replica in self._replicas:
            ray.kill(replica)

    async def _ready(self, rank: int) -> None:
        """Wait until Ray has restarted a replica that went down and its model is loaded; dispatch has the deadline."""
        if rank not in self._down:
            return
        logger.warning("reward replica %d went down; waiting for its restart", rank)
        while True:
            try:
                async with asyncio.timeout(self._config.timeout_s):
                    await asyncio.wrap_future(self._replicas[rank].start.remote().future())
            except (RayError, TimeoutError) as error:
                kind, cause = classify(error)
                if kind in (FailureKind.RAISED, FailureKind.DIED):
                    raise ReplicaDown(f"reward replica {rank} {kind.value}: {cause}") from error
                await asyncio.sleep(RESTART_LOOK_S)
            else:
                self._down.discard(rank)
                logger.warning("reward replica %d is back", rank)
                return

    async def _ask(self, rank: int, groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
        """One replica's answer, in half the step's time: one that hangs must leave another time to do its work."""
        replica = self._replicas[rank]
        ref = replica.score.remote([group.ref for group in groups])
        try:
            async with asyncio.timeout(self._config.timeout_s / 2):
                return await asyncio.wrap_future(ref.future())
        except (RayError, TimeoutError) as error:
            kind, cause = classify(error)
            reason = f"reward replica {rank} {kind.value}: {cause or 'no answer'}"
            if kind in (FailureKind.RAISED, FailureKind.LOST):
                raise PieceRefused(reason) from error
            if kind is FailureKind.LATE:
                ray.kill(replica, no_restart=False)  # back, and empty, for the next step
            self._down.add(rank)
            raise ReplicaDown(reason) from error


def piece_tokens(config: RewardConfig, groups: Sequence[GroupHandle], num_replicas: int) -> int:
    """How much goes to a replica together: a micro-batch of its model, or a replica's whole share where it asks other
    processes and machines, which answer many at a time."""
    if not (config.functions or config.remote or config.judges):
        return config.micro_batch_tokens
    total = sum(meta.num_tokens for group in groups for meta in group.metas)
    return max(config.micro_batch_tokens, -(-total // num_replicas))


def _num_tokens(groups: Sequence[RolloutGroup]) -> int:
    return sum(len(g.prompt.token_ids) + len(c.response_ids) for g in groups for c in g.completions)


async def _answer(scorer: ComposedScorer, batch: Sequence[_Request]) -> bool:
    """Score a batch and tell its callers. False when it failed and its callers may be asked one by one."""
    groups = [group for request in batch for group in request.groups]
    [result] = await asyncio.gather(asyncio.to_thread(scorer.score, groups), return_exceptions=True)
    if isinstance(result, BaseException):
        if len(batch) == 1 and not batch[0].answer.done():
            batch[0].answer.set_exception(result)
        return False
    for request in batch:
        size = sum(len(group.completions) for group in request.groups)
        if not request.answer.done():  # its caller may have given up
            request.answer.set_result(result[:size])
        result = result[size:]
    return True
