"""Weights by broadcast from real learners through the publisher: somebody is lost in each phase, and the run goes on.

Engines are simulated (tests/soak/simulated.py): they receive, digest and compare as real ones do, whose own part in a
broadcast is in test_weights.py and test_tensor_parallel.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle
from raylign.cluster.errors import FailureKind, RoleError
from raylign.cluster.placement import RoleRequest, plan_placement
from raylign.cluster.reserve import reserve
from raylign.cluster.runtime_env import RoleEnv
from raylign.cluster.session import Session, session
from raylign.cluster.shared_folder import SharedFolder
from raylign.conf.schema import (
    ClusterConfig,
    Device,
    LearnerConfig,
    PlacementStrategy,
    Precision,
    RolloutConfig,
    SyncConfig,
    SyncTransport,
)
from raylign.data.sample_model import tiny_model
from raylign.rollout import worker
from raylign.rollout.interfaces import Canary, Ref, TransferLink, VerifyReport, WeightManifest
from raylign.rollout.pool import RolloutPool
from raylign.rollout.worker import RayWorkerHandle, WorkerSpec, spawn_worker
from raylign.trainer.algorithms.ppo import PPO, PPOConfig
from raylign.trainer.loops.canary_limit import CanaryLimit
from raylign.trainer.loops.publish import WeightPublisher
from raylign.trainer.loops.transport import Broadcast
from raylign.trainer.workers.learner_group import GroupSettings, LearnerGroup
from raylign.trainer.workers.policy import PolicyGroup
from raylign.trainer.workers.rank_process import RankProcess
from raylign.trainer.workers.specs import PolicySpec

from tests.soak import simulated

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

LEARNER = LearnerConfig(precision=Precision.float32, zero_stage=3, num_ranks=2, micro_batch_tokens=64)
ROLLOUT = RolloutConfig(threads_per_worker=1, health_timeout_s=5.0)
SYNC = SyncConfig(transport=SyncTransport.broadcast, timeout_s=10.0, bucket_mb=1)
LATE_WEIGHT = 18
"""Of the model's 20, in the second bucket."""
SIGNALS = pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])


class Watched(RayWorkerHandle):
    """A worker whose calls can be preceded by a fault, and what it said of its weights."""

    before: Callable[[str], None] = staticmethod(lambda verb: None)
    report: VerifyReport | None = None

    async def join_transfer(self, link: TransferLink) -> None:
        self.before("join_transfer")
        await super().join_transfer(link)

    async def receive_weights(self) -> None:
        self.before("receive_weights")
        await super().receive_weights()

    async def finish_update(self, canaries: Sequence[Canary]) -> VerifyReport:
        self.before("finish_update")
        self.report = await super().finish_update(canaries)
        return self.report

    async def resume(self, version: int) -> None:
        self.before("resume")
        await super().resume(version)


class Faulty:
    """The learner's side of a publication, whose calls can be preceded by a fault too."""

    def __init__(self, policy: PolicyGroup, before: Callable[[str], None]) -> None:
        self._policy, self._before = policy, before

    async def manifest(self, version: int, *, adapters_only: bool = False) -> WeightManifest:
        self._before("manifest")
        return await self._policy.manifest(version, adapters_only=adapters_only)

    async def canaries(self) -> list[Canary]:
        self._before("canaries")
        return await self._policy.canaries()

    async def buckets(self) -> list[Ref]:
        return await self._policy.buckets()

    async def open_transfer(self, num_workers: int) -> TransferLink:
        self._before("open_transfer")
        return await self._policy.open_transfer(num_workers)

    async def join_transfer(self) -> str:
        self._before("join_transfer")
        return await self._policy.join_transfer()

    async def send_weights(self) -> str:
        self._before("send_weights")
        return await self._policy.send_weights()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Session]:
    real = worker.RolloutWorker
    cloudpickle.register_pickle_by_value(simulated)  # no Ray worker can import the tests
    worker.RolloutWorker = simulated.SimulatedWorker
    with session(ClusterConfig(object_store_gb=0.3), num_cpus=6) as live:
        yield live
    worker.RolloutWorker = real
    cloudpickle.unregister_pickle_by_value(simulated)


class Stage:
    """A policy of two ranks and simulated workers; the lost are replaced."""

    def __init__(self, cluster: Session, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder
        self.policy: PolicyGroup | None = None
        self.workers: list[Watched] = []
        self._spawned = 0
        self._version = 0
        self._reservation: Any = None

    async def fill(self) -> None:
        """A policy and two workers that live."""
        if self.policy is None:
            self.policy = await self._learners()
        while len(self.workers) < 2:
            self.workers.append(await self._worker())

    async def publish(self, before: Callable[[str], None] = lambda verb: None) -> int:
        """How many workers serve the next version; the lost ones are ended."""
        assert self.policy is not None
        pool = RolloutPool(self.workers, max_concurrent=8, timeout_s=60)
        source = Faulty(self.policy, before)
        publisher = WeightPublisher(
            source,
            pool.members,
            timeout_s=SYNC.timeout_s,
            canary_limit=CanaryLimit(1.0),
            whole_weights=Broadcast(source),
        )
        self._version += 1
        try:
            return (await publisher.publish(self._version)).verified_workers
        finally:
            for dead in pool.take_dead():
                self.workers = [w for w in self.workers if w.name != dead.name]
                await dead.stop()

    def lose_policy(self) -> None:
        assert self.policy is not None
        self.policy.stop()
        self.policy = None
        self._reservation.release()

    def close(self) -> None:
        if self.policy is not None:
            self.lose_policy()
        for one in self.workers:
            one.kill()

    def rank(self, rank: int) -> Any:
        assert self.policy is not None
        return self.policy.learners._group.actors[rank]

    async def _worker(self) -> Watched:
        self._spawned += 1
        spec = WorkerSpec(
            f"rollout/{self._spawned}", str(self._folder), ROLLOUT, SYNC, Device.cpu, log_dir=str(self._folder.parent)
        )
        plain = spawn_worker(spec, options={"num_cpus": 0.5}, env_vars=RoleEnv(Device.cpu, threads=1).variables())
        made = Watched(spec.name, plain.actor, generate_s=60, update_s=SYNC.timeout_s, ping_s=ROLLOUT.health_timeout_s)
        await made.start(120)
        return made

    async def _learners(self) -> PolicyGroup:
        placed = plan_placement([RoleRequest("policy", 2, 1.0, 0.0)], PlacementStrategy.shared, self._cluster.nodes())
        self._reservation = reserve(placed, timeout_s=60)
        logs = self._folder.parent
        settings = GroupSettings(
            role="policy",
            process=RankProcess(Device.cpu, 1, loopback=True, env={}),
            micro_batch_tokens=64,
            start_timeout_s=240.0,
            step_timeout_s=120.0,
            log_dir=str(logs),
            run_folder=SharedFolder.mark(logs),
        )
        learners = await LearnerGroup.start(
            PolicySpec(str(self._folder), LEARNER, Device.cpu, 10, 120.0),
            settings,
            reservation=self._reservation,
            cores={node.node_id: 2 for node in self._cluster.nodes()},
        )
        return PolicyGroup(learners, PPO(PPOConfig()), SYNC, temperature=1.0, entropy_gradient=False)


def _pid(actor: Any) -> int:
    return ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=60)


def _once(verb: str, pid: int, how: int) -> Callable[[str], None]:
    """A fault before the first call of `verb`."""
    left = [pid]

    def before(called: str) -> None:
        if called == verb and left:
            os.kill(left.pop(), how)

    return before


def _half_way(rank: Any, how: int) -> Callable[[str], None]:
    """A fault when the first bucket has been sent."""

    def plant(_: Any) -> None:  # in the rank's process
        from raylign.trainer.workers import transfer

        weights = transfer.whole_weights

        def broken(engine: Any) -> Any:
            for index, item in enumerate(weights(engine)):
                if index == LATE_WEIGHT:
                    os.kill(os.getpid(), how)
                yield item

        transfer.whole_weights = broken

    def before(called: str) -> None:
        if called == "send_weights":
            ray.get(rank.__ray_call__.remote(plant), timeout=60)

    return before


@pytest.fixture(scope="module")
def stage(cluster: Session, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(cluster, tiny_model(tmp_path_factory.mktemp("broadcast") / "model", tie=True))
    yield made
    made.close()


def play(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 240))


def test_every_worker_has_the_weights_that_two_ranks_hold_in_parts(stage: Stage) -> None:
    async def story() -> None:
        await stage.fill()
        assert await stage.publish() == 2
        first = [one.report for one in stage.workers]
        assert all(report is not None and not report.mismatched and len(report.digests) == 20 for report in first)
        staged = await stage.policy.learners.stage_weights(1 << 20)  # the other transport's own digests
        assert {spec.name: spec.digest for spec in staged.tensors} == first[0].digests == first[1].digests

    play(story)


@SIGNALS
@pytest.mark.parametrize("verb", ["join_transfer", "receive_weights", "finish_update", "resume"])
@pytest.mark.thorough
def test_a_worker_lost_in_a_phase_costs_the_others_an_attempt_and_its_successor_is_published_to(
    stage: Stage, verb: str, how: int
) -> None:
    async def story() -> None:
        await stage.fill()
        victim = stage.workers[0]
        victim.before = _once(verb, _pid(victim.actor), how)
        served = await stage.publish()
        if how == signal.SIGSTOP and len(stage.workers) == 2:  # late once: given up in the next publication
            assert await stage.publish() == 1
        assert served == 1 and stage.workers[0] is not victim and len(stage.workers) == 1
        await stage.fill()
        assert await stage.publish() == 2

    play(story)


@SIGNALS
@pytest.mark.parametrize(
    ("rank", "verb"),
    [
        *((0, verb) for verb in ("manifest", "canaries", "open_transfer", "join_transfer", "send_weights", "half-way")),
        *((1, verb) for verb in ("manifest", "send_weights")),
    ],
)
@pytest.mark.thorough
def test_a_learner_rank_lost_in_a_phase_is_a_failure_of_the_policy_and_its_successor_publishes(
    stage: Stage, rank: int, verb: str, how: int
) -> None:
    async def story() -> None:
        await stage.fill()
        lost_rank = stage.rank(rank)
        before = _half_way(lost_rank, how) if verb == "half-way" else _once(verb, _pid(lost_rank), how)
        with pytest.raises(RoleError) as lost:
            await stage.publish(before)
        assert lost.value.role == "policy"
        assert lost.value.kind is (FailureKind.DIED if how == signal.SIGKILL else FailureKind.LATE)
        assert len(stage.workers) == 2, "a worker was given up for the learner's fault"
        stage.lose_policy()
        await stage.fill()
        assert await stage.publish() == 2

    play(story)
