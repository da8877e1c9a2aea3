"""Reward replicas on real Ray: the same scores however they are batched and dealt, and failures by name."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from raylign.cluster.errors import RoleError
from raylign.cluster.fleet import Fleet
from raylign.cluster.placement import RoleRequest, plan_placement
from raylign.cluster.reserve import Place, Reservation, reserve
from raylign.cluster.runtime_env import RoleEnv
from raylign.cluster.session import Session, session
from raylign.conf.errors import ModelLoadError
from raylign.conf.schema import ClusterConfig, Device, PlacementStrategy, Precision, RewardConfig, RuleRewardConfig
from raylign.data.sample_model import tiny_model
from raylign.data.types import (
    Completion,
    FinishReason,
    Message,
    Prompt,
    Reward,
    RewardFailure,
    RolloutGroup,
    RolloutMeta,
    SampleKey,
    SamplingParams,
    VersionSpan,
)
from raylign.reward.pool import Replica, ReplicaSpec, RewardPool
from raylign.reward.scorer import ComposedScorer
from raylign.reward.shaping import Shaping
from raylign.reward.sources import RewardSources
from raylign.rollout.interfaces import GroupHandle, Ref
from raylign.trainer.engine.base import WRAPPER_PREFIX
from raylign.trainer.models.export import export_hf
from raylign.trainer.models.loading import load_scalar_model
from transformers import AutoTokenizer


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RewardConfig:
    base = tiny_model(tmp_path_factory.mktemp("base") / "tiny", tie=True)
    model = load_scalar_model(base, precision=Precision.float32, new_head_seed=5)
    state = {name.removeprefix(WRAPPER_PREFIX): p.detach() for name, p in model.named_parameters()}
    folder: Path = tmp_path_factory.mktemp("rm") / "rm"
    export_hf(model, state.items(), folder, AutoTokenizer.from_pretrained(base))
    rules = [RuleRewardConfig(rule="low_token_share:250", weight=2.0)]
    return RewardConfig(
        model=str(folder), rules=rules, precision=Precision.float32, micro_batch_tokens=300, timeout_s=60.0, clip=0.0
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Session]:
    with session(ClusterConfig(object_store_gb=0.2), num_cpus=4) as live:
        yield live


async def start(cluster: Session, config: RewardConfig, replicas: int) -> RewardPool:
    requests = [RoleRequest("reward", replicas, 0.5, 0, elastic=True)]
    reservation = reserve(plan_placement(requests, PlacementStrategy.shared, cluster.nodes()), timeout_s=30)
    pool = RewardPool(
        [
            replica(rank, config, reservation, reservation.place(slot))
            for rank, slot in enumerate(reservation.placement.of("reward"))
        ],
        config,
        Shaping(normalize=False, truncation_penalty=0.0, clip=0.0),
    )
    await pool.start(120.0)
    return pool


def replica(rank: int, config: RewardConfig, reservation: Reservation, place: Place) -> Replica:
    def another() -> Place:
        return reservation.late_place(cpus=0.5, gpus=0.0, labels={})

    spec = ReplicaSpec(config, Device.cpu, RewardSources(), start_timeout_s=120.0, max_restarts=5)
    return Replica(rank, spec, place=place, another=another, env_vars=RoleEnv(Device.cpu, threads=1).variables())


def rollouts(count: int) -> list[RolloutGroup]:
    draw = random.Random(9)
    groups = []
    for p in range(count):
        prompt = Prompt(f"p{p}", (Message("user", "?"),), tuple(draw.randrange(3, 500) for _ in range(5)))
        completions = []
        for k in range(2):
            ids = tuple(draw.randrange(3, 500) for _ in range(draw.randrange(1, 40)))
            completions.append(
                Completion(
                    SampleKey(0, f"p{p}", k), ids, (0.0,) * len(ids), FinishReason.LENGTH, (VersionSpan(1, 0, 1),), ""
                )
            )
        groups.append(RolloutGroup(prompt, SamplingParams(1.0, 40), tuple(completions)))
    return groups


def store(groups: Sequence[RolloutGroup]) -> list[GroupHandle]:
    return [
        GroupHandle(
            Ref(ray.put(g)),
            tuple(RolloutMeta(c.key, 5, len(c.response_ids), c.finish_reason, 1, 1, 1) for c in g.completions),
        )
        for g in groups
    ]


def scores(outcomes: Sequence[object]) -> list[float]:
    assert all(isinstance(o, Reward) for o in outcomes), outcomes
    return [o.score for o in outcomes if isinstance(o, Reward)]


def test_batching_and_replicas_do_not_change_a_score_and_a_killed_replica_costs_nothing(
    cluster: Session, config: RewardConfig
) -> None:
    groups = rollouts(12)
    expected = scores(ComposedScorer(config, Device.cpu).score(groups))

    async def scenario() -> None:
        handles = store(groups)
        pool = await start(cluster, config, replicas=2)
        try:
            assert scores(await pool.score(handles)) == pytest.approx(expected, abs=1e-5)
            parts = await asyncio.gather(*(pool.score([handle]) for handle in handles))  # concurrent calls are merged
            assert [s for part in parts for s in scores(part)] == pytest.approx(expected, abs=1e-5)
            kill(pool.members()[0])
            assert scores(await pool.score(handles)) == pytest.approx(expected, abs=1e-5)
            assert scores(await pool.score(handles)) == pytest.approx(expected, abs=1e-5)  # it is back
        finally:
            pool.stop()

    asyncio.run(scenario())


def kill(replica: Replica) -> None:
    pid = ray.get(replica.actor.__ray_call__.remote(lambda self: os.getpid()), timeout=30)
    os.kill(pid, signal.SIGKILL)


def test_the_only_replica_is_waited_for_and_replicas_come_and_go(cluster: Session, config: RewardConfig) -> None:
    """R25: the step in which the only one dies is scored in full; then a second joins, and the first leaves."""
    groups = rollouts(6)
    expected = scores(ComposedScorer(config, Device.cpu).score(groups))

    async def scenario() -> None:
        handles = store(groups)
        requests = [RoleRequest("reward", 1, 0.5, 0, elastic=True)]
        reservation = reserve(plan_placement(requests, PlacementStrategy.shared, cluster.nodes()), timeout_s=30)
        first = replica(0, config, reservation, reservation.place(reservation.placement.of("reward")[0]))
        pool = RewardPool([first], config, Shaping(normalize=False, truncation_penalty=0.0, clip=0.0))

        def spawn(rank: int) -> Replica:
            return replica(rank, config, reservation, reservation.late_place(cpus=0.5, gpus=0.0, labels={}))

        fleet = Fleet(pool, spawn, first_index=1, start_timeout_s=120.0, failures=(RoleError,), max_restarts=5)
        try:
            await pool.start(120.0)
            kill(first)
            assert scores(await pool.score(handles)) == pytest.approx(expected, abs=1e-5)
            async with asyncio.timeout(120):
                while len(pool.members()) < 2:
                    fleet.adjust(2)
                    await asyncio.sleep(0.2)
            assert scores(await pool.score(handles)) == pytest.approx(expected, abs=1e-5)
            under_way = asyncio.create_task(pool.score(handles))
            await asyncio.sleep(0)
            await pool.remove_worker("reward/0")  # while a step asks it
            assert scores(await under_way) == pytest.approx(expected, abs=1e-5)
            assert [member.name for member in pool.members()] == ["reward/1"]
            assert scores(await pool.score(handles)) == pytest.approx(expected, abs=1e-5)
        finally:
            fleet.close()
            pool.stop()

    asyncio.run(scenario())


def test_what_cannot_be_scored_fails_by_name_and_alone(cluster: Session, config: RewardConfig) -> None:
    groups = rollouts(3)
    endless = replace(groups[1].completions[0], response_ids=(5,) * 1100, rollout_logprobs=(0.0,) * 1100)
    groups[1] = replace(groups[1], completions=(endless, groups[1].completions[1]))

    async def scenario() -> list[object]:
        pool = await start(cluster, config, replicas=1)
        try:
            handles = store(groups)
            handles[2] = GroupHandle(Ref(ray.put("not a group")), handles[2].metas)
            return list(await pool.score(handles))
        finally:
            pool.stop()

    outcomes = asyncio.run(scenario())
    assert [type(o) for o in outcomes[:2]] == [Reward, Reward], outcomes
    assert isinstance(outcomes[2], RewardFailure) and "context of 1024" in outcomes[2].reason
    assert isinstance(outcomes[3], Reward)
    assert all(isinstance(o, RewardFailure) and "reward replica 0 raised" in o.reason for o in outcomes[4:])


def test_a_model_that_cannot_be_loaded_is_named_at_start(
    cluster: Session, config: RewardConfig, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match=r"^model folder .*nothing does not exist") as refused:
        asyncio.run(start(cluster, replace(config, model=str(tmp_path / "nothing")), replicas=1))
    assert refused.value.exit_code == 2
