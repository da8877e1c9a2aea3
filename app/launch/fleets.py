"""The workers of an online run that may come and go: where later ones go, and who decides how many there are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from raylign.app.launch.demand import cpus_per_worker, gpus_per_replica, gpus_per_worker
from raylign.app.launch.stage import Stage
from raylign.cluster.errors import RoleError
from raylign.cluster.fleet import Fleet
from raylign.cluster.reserve import Place, Reservation
from raylign.conf.errors import UserError
from raylign.conf.schema import PlacementStrategy, RunConfig
from raylign.records.scale_order import clear_order, read_order
from raylign.reward.pool import Replica, RewardPool
from raylign.rollout.autoscale import Autoscaler, Bounds
from raylign.rollout.interfaces import EngineDead
from raylign.rollout.pool import RolloutPool
from raylign.rollout.worker import RayWorkerHandle
from raylign.trainer.loops.scaling import ScalingHook, Wanted

_LEARNERS = ("policy", "critic", "reference")
_APART = (PlacementStrategy.separate, PlacementStrategy.one_node)
"""Where late workers stay away from learners' nodes."""


@dataclass(frozen=True, slots=True)
class LatePlaces:
    """Room for workers that join a live run: where there is any; on one machine, where CPUs only count, beside the
    others."""

    stage: Stage
    reservation: Reservation

    def rollout(self) -> Place:
        """For a rollout worker."""
        config = self.stage.config
        return self._place(cpus_per_worker(config), gpus_per_worker(config))

    def reward(self) -> Place:
        """For a reward replica."""
        config = self.stage.config
        return self._place(config.reward.cpus_per_replica, gpus_per_replica(config))

    def _place(self, cpus: float, gpus: float) -> Place:
        cluster = self.stage.config.cluster
        return self.reservation.late_place(
            cpus=0.0 if self.stage.session.local else cpus,
            gpus=gpus,
            labels=cluster.serving_labels,
            avoid=_LEARNERS if cluster.placement in _APART else (),
        )


def scaling_hook(
    stage: Stage,
    rollouts: RolloutPool,
    late_worker: Callable[[int], RayWorkerHandle],
    rewards: RewardPool,
    late_replica: Callable[[int], Replica],
    stack: ExitStack,
) -> ScalingHook:
    """Keeps both at the size of the settings, of the policy, or of a later `raylign scale`."""
    folder, config = stage.folder.path, stage.config
    clear_order(folder)
    at_start, late = (config.rollout.num_workers, config.reward.num_replicas), config.cluster.start_timeout_s
    taking_turns = config.cluster.placement is PlacementStrategy.colocated
    rollout: Fleet[RayWorkerHandle] = Fleet(
        rollouts,
        None if taking_turns else late_worker,
        first_index=at_start[0],
        start_timeout_s=late,
        failures=(EngineDead,),
        max_restarts=config.cluster.max_worker_restarts,
    )
    reward: Fleet[Replica] = Fleet(
        rewards,
        late_replica,
        first_index=at_start[1],
        start_timeout_s=late,
        failures=(RoleError, UserError),
        max_restarts=config.cluster.max_worker_restarts,
    )
    rollouts.expect(lambda: rollout.expects)
    stack.callback(rollout.close)
    stack.callback(reward.close)

    def ordered() -> Wanted:
        order = read_order(folder)
        return Wanted(order.rollout, order.reward)

    return ScalingHook(
        rollout,
        reward,
        at_start=at_start,
        ordered=ordered,
        serving=lambda: rollouts.counts().serving,
        load=rollouts.load,
        policy=_autoscaler(config),
    )


def _autoscaler(config: RunConfig) -> Autoscaler | None:
    autoscale = config.rollout.autoscale
    if not autoscale.max_workers:
        return None
    bounds = Bounds(
        autoscale.min_workers,
        autoscale.max_workers,
        wait_share=autoscale.wait_share,
        steps=autoscale.steps,
        ahead=config.rollout.max_staleness > 0,
    )
    return Autoscaler(bounds, config.rollout.num_workers)
