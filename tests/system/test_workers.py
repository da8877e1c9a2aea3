"""A worker group on real Ray: who failed, while doing what, and why, within the deadline."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator

import pytest
import ray
from raylign.cluster.card_watch import CardWatch
from raylign.cluster.cards import CardReading
from raylign.cluster.errors import FailureKind, RoleError
from raylign.cluster.placement import RoleRequest, plan_placement
from raylign.cluster.reserve import Reservation, reserve
from raylign.cluster.runtime_env import RoleEnv
from raylign.cluster.session import Session, session
from raylign.cluster.worker_group import WorkerGroup
from raylign.conf.errors import ClusterError, RunFailed
from raylign.conf.schema import ClusterConfig, Device, PlacementStrategy
from raylign.rollout.interfaces import GroupHandle
from raylign.trainer.workers.experience import ObjectReader


def rank_class() -> type:  # noqa: C901 (a class of six small methods)
    """A local class travels by value: Ray workers cannot import this test."""

    class Rank:
        """Stands in for a learner: what matters here is how its processes end."""

        def __init__(self, rank: int) -> None:
            self.rank = rank

        def where(self) -> tuple[str, dict[str, str], int, bool]:
            import sys

            import raylign.data

            return str(raylign.data.__file__), dict(os.environ), os.getppid(), "colorsys" in sys.modules

        def address(self) -> str:
            import ray

            return str(ray.util.get_node_ip_address())

        def answer(self) -> int:
            return self.rank * 10

        def die_after_peers_raise(self) -> None:
            """Rank 1 dies; rank 0's collective breaks a moment before Ray knows of the death."""
            if self.rank == 1:
                time.sleep(0.5)
                os._exit(1)
            raise RuntimeError("Connection closed by peer [127.0.0.1]:40001")

        def raise_on_one(self) -> None:
            if self.rank == 1:
                raise ValueError("loss is nan")
            time.sleep(60)

        def store(self) -> object:
            return ray.put(list(range(100_000)))

        def sleep_on_one(self) -> None:
            if self.rank == 1:
                time.sleep(60)

    return Rank


@pytest.fixture(scope="module")
def cluster() -> Iterator[Session]:
    with session(ClusterConfig(num_cpus=3, object_store_gb=0.1), num_cpus=0) as live:
        yield live


@pytest.fixture
def reservation(cluster: Session) -> Iterator[Reservation]:
    placement = plan_placement([RoleRequest("policy", 2, 1.0, 0.0)], PlacementStrategy.shared, cluster.nodes())
    reserved = reserve(placement, timeout_s=30)
    yield reserved
    reserved.release()


@pytest.fixture
def group(reservation: Reservation) -> Iterator[WorkerGroup]:
    slots = reservation.placement.of("policy")
    env = RoleEnv(Device.cpu, threads=1, preload=("colorsys",))
    spawned = WorkerGroup.spawn(
        rank_class(),
        role="policy",
        options=[reservation.options(s) for s in slots],
        env_vars=[env.variables() for _ in slots],
        args=[(s.rank,) for s in slots],
    )
    yield spawned
    spawned.stop()


def call(group: WorkerGroup, name: str, *, timeout_s: float = 30.0) -> list[object]:
    return asyncio.run(
        group.call(lambda actor, rank: getattr(actor, name).remote(), verb=name.replace("_", " "), timeout_s=timeout_s)
    )


def test_results_come_in_rank_order_from_our_own_packages(group: WorkerGroup) -> None:
    assert call(group, "answer") == [0, 10]
    import raylign.data

    found = call(group, "where")
    assert len({parent for _, _, parent, _ in found}) == 1, "the ranks are not forks of one server"
    for source, env, _, imported in found:
        assert source == raylign.data.__file__ and imported
        assert (env["DS_ACCELERATOR"], env["OMP_NUM_THREADS"], env["HF_HUB_OFFLINE"]) == ("cpu", "1", "1")
        assert env["RAY_AUTH_MODE"] == "token"
    assert call(group, "address")[0].startswith("127."), "ranks would meet on another interface"


def test_a_death_is_named_before_the_peers_it_breaks(group: WorkerGroup) -> None:
    call(group, "answer")
    started = time.monotonic()
    with pytest.raises(RoleError) as failure:
        call(group, "die_after_peers_raise", timeout_s=30)
    assert time.monotonic() - started < 15
    assert (failure.value.role, failure.value.ranks, failure.value.kind) == ("policy", (1,), FailureKind.DIED)
    assert "policy rank 1 died during die after peers raise" in str(failure.value)
    with pytest.raises(RoleError, match="policy rank 1 died"):  # a broken group says so at once
        call(group, "answer")


def test_an_exception_is_named_though_its_peer_hangs(group: WorkerGroup) -> None:
    call(group, "answer")
    with pytest.raises(
        RoleError, match=r"policy rank 1 raised during raise on one: ValueError: loss is nan"
    ) as failure:
        call(group, "raise_on_one", timeout_s=30)
    assert failure.value.kind is FailureKind.RAISED


def test_late_ranks_are_named(group: WorkerGroup) -> None:
    call(group, "answer")
    with pytest.raises(RoleError, match=r"policy rank 1 late during sleep on one: no answer within 1 s") as failure:
        call(group, "sleep_on_one", timeout_s=1)
    assert failure.value.ranks == (1,)


def test_a_result_whose_holder_died_is_told_in_a_sentence(group: WorkerGroup) -> None:
    """The memory guard may kill the one process that holds a step's advantages."""
    held, _ = call(group, "store")
    reader = ObjectReader(timeout_s=20.0)
    handle = GroupHandle(held, ())
    assert len(asyncio.run(reader.rollout_group(handle))) == 100_000
    lost, _ = call(group, "store")
    group.stop()
    deadline = time.monotonic() + 30
    with pytest.raises(RunFailed, match=r"could not be read, because the role that holds it lost its input: .+ logs/"):
        while time.monotonic() < deadline:  # a copy on this node serves until Ray has noticed
            asyncio.run(reader.rollout_group(GroupHandle(lost, ())))
            time.sleep(0.2)


def test_the_cards_of_a_node_are_read_by_one_of_its_actors_and_by_another_when_that_has_died(cluster: Session) -> None:
    class Reader:
        def read(self) -> list[CardReading]:
            return [CardReading(0.5, 12.0, None, 300.0)]

    roles = [ray.remote(rank_class()).options(num_cpus=0).remote(rank) for rank in range(2)]
    watch = CardWatch(Reader)
    watch.add(roles)
    [node] = cluster.nodes()
    for _ in roles:
        figures: dict[str, float] = {}
        deadline = time.monotonic() + 60
        while not figures and time.monotonic() < deadline:
            figures = watch.figures()
        assert figures == {
            f"card/{node.address}/0/utilization": 0.5,
            f"card/{node.address}/0/memory_gb": 12.0,
            f"card/{node.address}/0/power_w": 300.0,
        }
        ray.kill(watch._actors[node.address][0])  # who reads


def test_a_busy_cluster_refuses_at_the_deadline_with_what_is_free(reservation: Reservation, cluster: Session) -> None:
    placement = plan_placement([RoleRequest("critic", 2, 1.0, 0.0)], PlacementStrategy.shared, cluster.nodes())
    with pytest.raises(ClusterError, match=r"requested 2 CPU, 0 GPU for critic; free 1 CPU"):
        reserve(placement, timeout_s=2)


def test_demand_beyond_the_cluster_is_refused_at_once(cluster: Session) -> None:
    with pytest.raises(ClusterError, match=r"GPU: policy 2 x 1 = 2 requested, the cluster has 0"):
        plan_placement([RoleRequest("policy", 2, 1.0, 1.0)], PlacementStrategy.shared, cluster.nodes())


def test_the_token_file_is_private_and_the_cluster_refuses_without_it(cluster: Session) -> None:
    path = os.environ["RAY_AUTH_TOKEN_PATH"]
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert ray.nodes()[0]["NodeManagerAddress"].startswith("127.")
