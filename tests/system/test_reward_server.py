"""Reward replicas on real Ray: the same scores however they are batched and dealt, and failures by name."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from raylign.cluster.placement import RoleRequest, plan_placement
from raylign.cluster.reserve import reserve
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
from raylign.reward.scorer import ComposedScorer
from raylign.reward.server import RewardPool
from raylign.reward.shaping import Shaping
from raylign.rollout.interfaces import GroupHandle, Ref
from raylign.trainer.engine.base import WRAPPER_PREFIX
from raylign.trainer.models.loading import export_hf, load_scalar_model
from transformers import AutoTokenizer


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RewardConfig:
    base = tiny_model(tmp_path_factory.mktemp("base") / "tiny", tie=True)
    model = load_scalar_model(base, precision=Precision.float32, new_head_seed=5)
    state = {name.removeprefix(WRAPPER_PREFIX): p.detach() for name, p in model.named_parameters()}
    folder: Path = tmp_path_factory.mktemp("rm") / "rm"
    export_hf(model, state, folder, AutoTokenizer.from_pretrained(base))
    rules = [RuleRewardConfig(rule="low_token_share:250", weight=2.0)]
    return RewardConfig(
        model=str(folder), rules=rules, precision=Precision.float32, micro_batch_tokens=300, timeout_s=60.0, clip=0.0
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Session]:
    with session(ClusterConfig(object_store_gb=0.2), num_cpus=4) as live:
        yield live


async def start(cluster: Session, config: RewardConfig, replicas: int) -> RewardPool:
    placement = plan_placement([RoleRequest("reward", replicas, 0.5, 0)], PlacementStrategy.shared, cluster.nodes())
    reservation = reserve(placement, timeout_s=30)
    return await RewardPool.start(
        config,
        Device.cpu,
        shaping=Shaping(normalize=False, truncation_penalty=0.0, clip=0.0),
        options=[reservation.options(slot) for slot in placement.of("reward")],
        env_vars=[RoleEnv(Device.cpu, threads=1).variables()] * replicas,
        timeout_s=120.0,
    )


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
            ray.kill(pool._replicas[0], no_restart=False)
            assert scores(await pool.score(handles)) == pytest.approx(expected, abs=1e-5)
            assert scores(await pool.score(handles)) == pytest.approx(expected, abs=1e-5)  # it is back
        finally:
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
