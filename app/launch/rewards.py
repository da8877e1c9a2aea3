"""Starts the reward side of an online run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from raylign.app.launch.functions import reward_functions
from raylign.app.launch.judges import judge_rubrics
from raylign.app.launch.stage import Stage
from raylign.cluster.reserve import Reservation
from raylign.cluster.runtime_env import RoleEnv
from raylign.conf.schema import RunConfig
from raylign.records.manifest import read_manifest
from raylign.reward.server import RewardPool
from raylign.reward.shaping import Overlong, Shaping
from raylign.reward.sources import RewardSources


async def start_rewards(
    stage: Stage, reservation: Reservation, cores: Mapping[str, int], stack: ExitStack
) -> RewardPool:
    """Every replica ready."""
    config = stage.config
    slots = reservation.placement.of("reward")
    threads = [
        config.reward.threads_per_replica or max(1, cores[s.node_id] // reservation.placement.neighbours(s))
        for s in slots
    ]
    pool = await RewardPool.start(
        config.reward,
        config.cluster.device,
        shaping=_shaping(config),
        options=[reservation.options(slot) for slot in slots],
        env_vars=[
            RoleEnv(config.cluster.device, n, loopback=stage.session.local, keeps_pages=True).variables()
            | config.cluster.env
            for n in threads
        ],
        timeout_s=config.cluster.start_timeout_s,
        log_dir=str(stage.folder.logs),
        sources=RewardSources(
            functions=reward_functions(config.reward),
            policy_model=config.policy.model,
            rubrics=judge_rubrics(config.reward),
            judged_folder=str(stage.folder.judged.absolute()),
            today=read_manifest(stage.folder.manifest).today,
        ),
    )
    stack.callback(pool.stop)
    return pool


def _shaping(config: RunConfig) -> Shaping:
    reward = config.reward
    overlong = None
    if reward.overlong_window > 0:
        overlong = Overlong(config.rollout.max_new_tokens, reward.overlong_window, reward.overlong_penalty)
    return Shaping(reward.normalize, reward.truncation_penalty, reward.clip, overlong)
