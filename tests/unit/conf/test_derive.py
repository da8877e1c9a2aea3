"""Batch arithmetic against numbers worked out by hand, and what open settings become."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest
from raylign.conf.checks import Needs
from raylign.conf.derive import (
    Surroundings,
    batch_plan,
    critic_start,
    offline_steps,
    reference_model,
    resolve,
    run_name,
    shares_reference,
)
from raylign.conf.schema import (
    DataConfig,
    LearnerConfig,
    LoraConfig,
    Precision,
    ReferenceConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    TrackingConfig,
    WandbMode,
)
from raylign.trainer.algorithms.ppo import PPOConfig
from raylign.trainer.algorithms.rm import RMConfig

ONLINE = Needs(rollout=True, critic=True, reference=True, reward=True)
OFFLINE = Needs(rollout=False, critic=False, reference=False, reward=False)
HERE = Surroundings(
    now=datetime(2026, 3, 4, 5, 6, 7),
    cores=8,
    wandb="offline",
    wandb_why="no key",
    checkpoint=None,
    in_ray_job=False,
    demanded_cpus=9.5,
)


def ppo_run() -> RunConfig:
    return RunConfig(
        algorithm=PPOConfig(sequences_per_update=16, ppo_epochs=2),
        num_steps=10,
        policy=LearnerConfig(model="p", num_ranks=3),
        reward=RewardConfig(model="r"),
        rollout=RolloutConfig(prompts_per_step=8, samples_per_prompt=4, max_new_tokens=50, num_workers=2),
        data=DataConfig(max_prompt_tokens=30),
    )


def test_adapters_of_equal_precision_make_the_policy_its_own_reference() -> None:
    run = replace(ppo_run(), policy=LearnerConfig(model="start", lora=LoraConfig(rank=8)))
    assert shares_reference(run)
    assert shares_reference(replace(run, reference=ReferenceConfig(model="start")))
    assert not shares_reference(replace(run, reference=ReferenceConfig(model="another")))
    assert not shares_reference(replace(run, reference=ReferenceConfig(precision=Precision.float32)))
    assert not shares_reference(replace(run, policy=LearnerConfig(model="start")))


def test_online_arithmetic():
    plan = batch_plan(ppo_run(), ONLINE, num_rows=40)
    assert plan.units_per_step == 32  # 8 x 4
    assert plan.updates_per_step == 4  # 32 / 16, twice
    assert plan.total_updates == 40
    assert plan.units_per_rank == 6  # 16 over 3 ranks, the fullest
    assert plan.max_tokens_per_step == 32 * 80
    assert plan.epochs == 2.0  # 10 steps x 8 prompts / 40


def test_an_update_never_takes_more_than_the_step_has():
    run = replace(ppo_run(), algorithm=PPOConfig(sequences_per_update=64), policy=LearnerConfig(num_ranks=2))
    plan = batch_plan(run, ONLINE, num_rows=None)
    assert (plan.updates_per_step, plan.units_per_rank, plan.epochs) == (1, 16, None)


def test_offline_arithmetic_from_epochs_and_from_steps():
    run = RunConfig(algorithm=RMConfig(pairs_per_update=8), num_steps=0, num_epochs=3, data=DataConfig(max_length=100))
    plan = batch_plan(run, OFFLINE, num_rows=20)
    assert plan.num_steps == plan.total_updates == 8  # 60 / 8 rounded up
    assert plan.epochs == 3.2
    assert plan.max_tokens_per_step == 1600  # 8 pairs x 2 sides x 100
    assert batch_plan(replace(run, num_steps=5), OFFLINE, num_rows=20).num_steps == 5
    assert batch_plan(run, OFFLINE, num_rows=None).num_steps == 0


@pytest.mark.parametrize(("rows", "per_update", "epochs", "steps"), [(16, 8, 1, 2), (17, 8, 1, 3), (17, 8, 2, 5)])
def test_offline_steps(rows: int, per_update: int, epochs: int, steps: int):
    assert offline_steps(rows, per_update, epochs) == steps


def test_open_settings_become_what_the_run_will_use():
    found = {r.key: r.value for r in resolve(ppo_run(), ONLINE, HERE)}
    assert found == {
        "name": "ppo-20260304-050607",
        "critic.model": "r",
        "reference.model": "p",
        "tracking.wandb": "offline",
        "checkpoint.resume": "from the start",
        "algorithm.old_logprobs": "recompute",  # the reward carries the KL
        "cluster.num_cpus": "10",
        "policy.threads_per_rank": "2",
        "critic.threads_per_rank": "8",
        "reference.threads_per_rank": "8",
        "reward.threads_per_replica": "8",
        "rollout.threads_per_worker": "4",
    }


def test_settings_that_were_given_stay():
    run = replace(
        ppo_run(),
        name="mine",
        critic=LearnerConfig(model="c", threads_per_rank=1),
        reference=ReferenceConfig(model="q", threads_per_rank=1),
        tracking=TrackingConfig(wandb=WandbMode.disabled),
    )
    keys = {r.key for r in resolve(run, ONLINE, HERE)}
    assert keys.isdisjoint({"name", "critic.model", "reference.model", "tracking.wandb", "critic.threads_per_rank"})
    assert (run_name(run, HERE.now), critic_start(run), reference_model(run)) == ("mine", "c", "q")


def test_a_submitted_job_joins_its_cluster():
    found = {r.key: r.value for r in resolve(ppo_run(), ONLINE, replace(HERE, in_ray_job=True))}
    assert found["cluster.address"] == "auto"
    assert "cluster.num_cpus" not in found
