"""The reward side of an online run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from raylign.app.launch.functions import reward_functions
from raylign.app.launch.judges import judge_rubrics
from raylign.app.launch.stage import Stage
from raylign.cluster import preloads
from raylign.cluster.placement import Slot
from raylign.cluster.reserve import Place, Reservation
from raylign.cluster.runtime_env import RoleEnv
from raylign.conf.schema import RunConfig
from raylign.records.manifest import read_manifest
from raylign.reward.pool import Replica, ReplicaSpec, RewardPool
from raylign.reward.shaping import Overlong, Shaping
from raylign.reward.sources import RewardSources


class RewardSide:
    """Makes replicas: those of the start, and those that a live run is given later."""

    def __init__(
        self, stage: Stage, reservation: Reservation, cores: Mapping[str, int], late_place: Callable[[], Place]
    ) -> None:
        """`late_place`: room for a replica wherever the cluster has it."""
        config = stage.config
        self._reward, self._reservation, self._cores, self._late_place = config.reward, reservation, cores, late_place
        self._watch_cards = stage.watch_cards  # a node may have nothing but replicas
        self._local, self._env, self._shaping = stage.session.local, dict(config.cluster.env), _shaping(config)
        self.spec = ReplicaSpec(
            config.reward,
            config.cluster.device,
            RewardSources(
                functions=reward_functions(config.reward),
                policy_model=config.policy.model,
                rubrics=judge_rubrics(config.reward),
                judged_folder=str(stage.folder.judged.absolute()),
                today=read_manifest(stage.folder.manifest).today,
                environment_weight=config.environment.reward_weight if config.environment.name else None,
            ),
            start_timeout_s=config.cluster.start_timeout_s,
            max_restarts=config.cluster.max_worker_restarts,
            log_dir=str(stage.folder.logs),
        )

    async def start(self, stack: ExitStack) -> RewardPool:
        """Every replica ready."""
        slots = self._reservation.placement.of("reward")
        pool = RewardPool(
            [self._replica(slot.rank, slot, self._reservation.place(slot)) for slot in slots],
            self._reward,
            self._shaping,
        )
        stack.callback(pool.stop)
        await pool.start(self.spec.start_timeout_s)
        return pool

    def late(self, index: int) -> Replica:
        """One more."""
        return self._replica(index, self._reservation.placement.of("reward")[0], self._late_place())

    def _replica(self, rank: int, slot: Slot, place: Place) -> Replica:
        """`slot`: whose share of its node's cores the replica's threads are cut to."""
        neighbours = self._reservation.placement.neighbours(slot)
        threads = self._reward.threads_per_replica or max(1, self._cores[slot.node_id] // neighbours)
        env = RoleEnv(
            self.spec.device, threads, loopback=self._local, keeps_pages=True, borrow=preloads.LEARNER[0]
        ).variables()
        env |= self._env
        replica = Replica(rank, self.spec, place=place, another=self._late_place, env_vars=env)
        self._watch_cards([replica.actor])
        return replica


def _shaping(config: RunConfig) -> Shaping:
    reward = config.reward
    overlong = None
    if reward.overlong_window > 0:
        overlong = Overlong(config.rollout.max_new_tokens, reward.overlong_window, reward.overlong_penalty)
    return Shaping(reward.normalize, reward.truncation_penalty, reward.clip, overlong)
