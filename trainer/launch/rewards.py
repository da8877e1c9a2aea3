"""Starts the reward side of an online run, and shows evaluation the raw scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from cluster.reserve import Reservation
from cluster.runtime_env import RoleEnv
from conf.errors import ConfigError
from data.types import RewardOutcome
from reward.server import RewardPool
from reward.tokenizer_match import tokenizer_problems
from rollout.interfaces import GroupHandle
from trainer.launch.stage import Stage


async def start_rewards(
    stage: Stage, reservation: Reservation, cores: Mapping[str, int], stack: ExitStack
) -> RewardPool:
    """Every replica ready. Raises ConfigError when the reward model reads other tokens than the policy writes."""
    config = stage.config
    if config.reward.model and (problems := tokenizer_problems(config.policy.model, config.reward.model)):
        raise ConfigError(problems)
    slots = reservation.placement.of("reward")
    threads = [
        config.reward.threads_per_replica or max(1, cores[s.node_id] // reservation.placement.neighbours(s))
        for s in slots
    ]
    pool = await RewardPool.start(
        config.reward,
        config.cluster.device,
        options=[reservation.options(slot) for slot in slots],
        env_vars=[RoleEnv(config.cluster.device, n, loopback=stage.session.local).variables() for n in threads],
        timeout_s=config.cluster.start_timeout_s,
        log_dir=str(stage.folder.logs),
    )
    stack.callback(pool.stop)
    return pool


@dataclass(frozen=True, slots=True)
class RawScores:
    """A loops.RewardPool for evaluation: scores before shaping, and the running statistics left alone."""

    pool: RewardPool

    async def score(self, groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
        """One outcome a completion, in order."""
        return await self.pool.raw_scores(groups)
