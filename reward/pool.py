"""The reward replicas of a run, from the controller's side: who scores what, who is gone, who comes back.

A replica has no state, so one that dies is simply started again, in its room or, when its node is gone, in another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from raylign.cluster.errors import FailureKind, RoleError
from raylign.cluster.oom import memory_kills
from raylign.cluster.rank import RankInfo
from raylign.cluster.reserve import Place
from raylign.cluster.restarts import Restarts
from raylign.cluster.worker_group import classify, refusal
from raylign.conf.errors import Stopped, UserError
from raylign.conf.schema import Device, RewardConfig
from raylign.data.types import FinishReason, RewardFailure, RewardOutcome
from raylign.reward.dispatch import PieceRefused, ReplicaDown, dispatch
from raylign.reward.interfaces import ShapingState
from raylign.reward.server import RewardServer
from raylign.reward.shaping import EMPTY_STATE, Response, Shaping, shape
from raylign.reward.sources import RewardSources
from raylign.rollout.interfaces import GroupHandle

MAX_CONCURRENT_CALLS = 64

ROOM_LOOK_S = 5.0
"""How long one question takes whether the cluster has room for a replica again."""

STILL_THERE_S = 1.0
"""How long a replica's room may take to be found there; that of a node that is gone never is."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What every replica of a run is."""

    config: RewardConfig
    device: Device
    sources: RewardSources
    start_timeout_s: float
    max_restarts: int
    log_dir: str = ""


class Replica:
    """One replica. A call that finds no process starts another; `ready` waits for it."""

    def __init__(
        self, rank: int, spec: ReplicaSpec, *, place: Place, another: Callable[[], Place], env_vars: Mapping[str, str]
    ) -> None:
        """`another`: a place for it to come back to, wherever the cluster has room then."""
        self._rank, self._spec, self._env_vars, self._another = rank, spec, dict(env_vars), another
        self._place = place
        self.actor = self._spawn()
        self._coming: asyncio.Task[None] | None = None  # the next process, when the last one is gone
        self._restarts = Restarts(spec.max_restarts)
        self.dead = False
        self.given_up = False
        self.reason = ""
        self.users = 0  # scoring calls that may still ask it
        self.unused = asyncio.Event()
        self.unused.set()

    @property
    def name(self) -> str:
        """As the logs call it."""
        return f"reward/{self._rank}"

    @property
    def served(self) -> bool:
        """From its start on it can score."""
        return True

    async def placed(self, timeout_s: float) -> bool:
        """Whether the cluster has room for it, after at most `timeout_s` seconds."""
        return await self._place.ready(timeout_s)

    async def start(self, timeout_s: float) -> None:
        """Wait until the model is loaded. Raises RoleError, or what the replica refuses (a folder that is no model)."""
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wrap_future(self.actor.start.remote().future())
        except (RayError, TimeoutError) as error:
            if (refused := refusal(error)) is not None:
                raise refused from error
            kind, cause = classify(error)
            cause = cause if kind is not FailureKind.LATE else f"no answer within {timeout_s:g} s"
            raise RoleError(role="reward", ranks=(self._rank,), verb="start", kind=kind, cause=cause) from error

    async def ready(self) -> None:
        """Returns when it can score, at once unless its process was lost; dispatch has the deadline."""
        if self.dead:
            raise ReplicaDown(self.reason)
        if self._coming is None:
            return
        try:
            await asyncio.shield(self._coming)  # the step may not wait for it; the next one finds it further on
        except (RoleError, UserError) as error:
            self.dead, self.reason = True, str(error)
            raise ReplicaDown(str(error)) from error
        self._coming = None

    async def score(self, groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
        """Its answer, in half the step's time: one that hangs must leave another time to do its work."""
        ref = self.actor.score.remote([group.ref for group in groups])
        try:
            async with asyncio.timeout(self._spec.config.timeout_s / 2):
                return await asyncio.wrap_future(ref.future())
        except (RayError, TimeoutError) as error:
            kind, cause = classify(error)
            reason = f"reward replica {self._rank} {kind.value}: {cause or 'no answer'}"
            if kind in (FailureKind.RAISED, FailureKind.LOST):
                raise PieceRefused(reason) from error
            if kind is FailureKind.DIED:
                reason += memory_kills.note("reward")
            if self._coming is None and not self.dead:
                self._lost(reason)
            raise ReplicaDown(reason) from error

    def _lost(self, reason: str) -> None:
        """Start another process, unless too many have died."""
        pause = self._restarts.died()
        if pause is None:
            self.dead, self.given_up, self.reason = True, True, reason
            logger.warning("%s %s", self.name, self._restarts.given_up(reason))
            return
        logger.warning("%s; another process is started%s", reason, f" after {pause:g} s" if pause else "")
        self._coming = asyncio.create_task(self._come_back(pause))

    def use(self, calls: int) -> None:
        """Count a scoring call that may ask it from now on (1), or is over (-1)."""
        self.users += calls
        (self.unused.clear if self.users else self.unused.set)()

    async def stop(self) -> None:
        """End it."""
        self.kill()

    def kill(self) -> None:
        """End it at once. Idempotent."""
        if self._coming is not None:
            self._coming.cancel()
        ray.kill(self.actor)
        self._place.release()

    async def _come_back(self, pause: float) -> None:
        """In its room where the process alone was lost or hangs, else wherever there is room."""
        ray.kill(self.actor)
        await asyncio.sleep(pause)
        if not await self.placed(STILL_THERE_S):  # given back before there is another, it would be somebody else's
            self._place.release()
            self._place = self._another()
        self.actor = self._spawn()
        while not await self.placed(ROOM_LOOK_S):
            logger.info("%s waits for room", self.name)
        await self.start(self._spec.start_timeout_s)
        logger.warning("%s is back", self.name)

    def _spawn(self) -> ActorHandle:
        spec = self._spec
        return (
            ray.remote(RewardServer)
            .options(
                max_restarts=0,
                max_concurrency=MAX_CONCURRENT_CALLS,
                runtime_env={"env_vars": self._env_vars},
                **self._place.options,
            )
            .remote(RankInfo("reward", self._rank, 1, spec.log_dir), spec.config, spec.device, spec.sources)
        )


class RewardPool:
    """Facade over the replicas: a loops.RewardPool, and a cluster.fleet.Crew."""

    def __init__(self, replicas: Sequence[Replica], config: RewardConfig, shaping: Shaping) -> None:
        self._replicas = list(replicas)
        self._config = config
        self._shaping = shaping
        self._state = EMPTY_STATE

    async def start(self, timeout_s: float) -> None:
        """Wait for all. Raises RoleError naming a replica that did not start."""
        await asyncio.gather(*(replica.start(timeout_s) for replica in self._replicas))

    @property
    def state(self) -> ShapingState:
        """The normaliser's statistics, for the checkpoint."""
        return self._state

    def restore(self, state: ShapingState) -> None:
        """Continue with saved statistics."""
        self._state = state

    async def score(self, groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
        """One raw outcome a completion, in order. A sample that fails, fails by name.

        Raises Stopped when samples fail because no replica is left: another start may find them well.
        """
        replicas = self.members()
        for replica in replicas:
            replica.use(1)
        try:
            outcomes = await dispatch(
                groups,
                [(replica.score, replica.ready) for replica in replicas],
                piece_tokens=piece_tokens(self._config, groups, max(1, len(replicas))),
                timeout_s=self._config.timeout_s,
            )
        finally:
            for replica in replicas:
                replica.use(-1)
        failed = [outcome for outcome in outcomes if isinstance(outcome, RewardFailure)]
        if failed and not self.members():
            raise Stopped(f"no reward replica is left: {failed[0].reason}")
        return outcomes

    def shape(self, groups: Sequence[GroupHandle], outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        """A whole step's outcomes as they are trained on; moves the normaliser."""
        responses = [
            Response(meta.response_tokens, meta.finish_reason is FinishReason.LENGTH)
            for group in groups
            for meta in group.metas
        ]
        shaped, self._state = shape(outcomes, responses, self._shaping, self._state)
        return shaped

    def members(self) -> tuple[Replica, ...]:
        """Replicas that score or will again."""
        return tuple(replica for replica in self._replicas if not replica.dead)

    def take_dead(self) -> tuple[Replica, ...]:
        """Remove and return those that did not come back."""
        dead = tuple(replica for replica in self._replicas if replica.dead)
        self._replicas = [replica for replica in self._replicas if not replica.dead]
        return dead

    def add_worker(self, replica: Replica) -> None:
        """It scores from the next call on."""
        self._replicas.append(replica)

    async def remove_worker(self, name: str) -> None:
        """Let the calls that may ask it end, then end it. Raises KeyError for no such name."""
        replica = next((replica for replica in self._replicas if replica.name == name), None)
        if replica is None:
            raise KeyError(f"no reward replica is named {name!r}; there are {[r.name for r in self._replicas]}")
        self._replicas.remove(replica)
        try:
            async with asyncio.timeout(self._config.timeout_s):
                await replica.unused.wait()
        except TimeoutError:
            logger.warning("%s is stopped while it scores", name)
        replica.kill()

    def stop(self) -> None:
        """Kill every replica."""
        for replica in self._replicas:
            replica.kill()


def piece_tokens(config: RewardConfig, groups: Sequence[GroupHandle], num_replicas: int) -> int:
    """How much goes to a replica together: a micro-batch of its model, or a replica's whole share where it asks other
    processes and machines, which answer many at a time."""
    if not (config.functions or config.remote or config.judges or config.code):
        return config.micro_batch_tokens
    total = sum(meta.num_tokens for group in groups for meta in group.metas)
    return max(config.micro_batch_tokens, -(-total // num_replicas))
