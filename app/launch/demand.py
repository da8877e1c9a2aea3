"""What a run asks of the cluster, role by role. Pure: settings in, requests out; `plan` and `train` share it."""

from __future__ import annotations

from dataclasses import replace

from raylign.cluster.placement import RoleRequest, Side
from raylign.conf.derive import shares_reference
from raylign.conf.schema import Device, LearnerConfig, PlacementStrategy, RunConfig
from raylign.rollout.environments.address import is_class
from raylign.trainer.algorithms.base import Role

TAKING_TURNS = ("policy", "critic")
"""Learners that share cards with engines under `colocated`; who only answers has cards of its own."""


def wanted_roles(config: RunConfig, algorithm_roles: frozenset[Role]) -> frozenset[Role]:
    """The algorithm's roles, and the reference when held-out fluency is measured under it."""
    measured = Role.ROLLOUT in algorithm_roles and config.evaluation.fluency
    return algorithm_roles | {Role.REFERENCE} if measured else algorithm_roles


def reference_is_shared(config: RunConfig, roles: frozenset[Role]) -> bool:
    """True when the policy's ranks answer for the reference too."""
    return {Role.REFERENCE, Role.ROLLOUT} <= roles and shares_reference(config)


def role_requests(config: RunConfig, roles: frozenset[Role]) -> list[RoleRequest]:
    """Processes, CPUs, GPUs and kind of node of every role the run starts."""
    cluster = config.cluster
    kinds = {Side.TRAIN: cluster.learner_labels, Side.SERVE: cluster.serving_labels}
    return [replace(r, labels=tuple(sorted(kinds[r.side].items()))) for r in _requests(config, roles)]


def _requests(config: RunConfig, roles: frozenset[Role]) -> list[RoleRequest]:
    requests = [_learner("policy", config.policy)]
    if Role.CRITIC in roles:
        requests.append(_learner("critic", config.critic))
    if Role.REFERENCE in roles and not reference_is_shared(config, roles):
        reference = config.reference
        requests.append(RoleRequest("reference", reference.num_ranks, reference.cpus_per_rank, reference.gpus_per_rank))
    if Role.REWARD in roles:
        reward = config.reward
        requests.append(
            RoleRequest(
                "reward",
                reward.num_replicas,
                reward.cpus_per_replica,
                gpus_per_replica(config),
                Side.SERVE,
                elastic=True,
                spread=True,
            )
        )
    if Role.ROLLOUT in roles:
        rollout = config.rollout
        engines = RoleRequest("rollout", rollout.num_workers, cpus_per_worker(config), gpus_per_worker(config))
        if config.cluster.placement is PlacementStrategy.colocated and engines.gpus:
            shared = [engines, *(r for r in requests if r.role in TAKING_TURNS)]
            return [*(r for r in requests if r not in shared), *(replace(r, takes_turns=True) for r in shared)]
        requests.append(replace(engines, side=Side.SERVE, elastic=True, spread=True))
    return requests


def cpus_per_worker(config: RunConfig) -> float:
    """Ray CPUs of one engine and of the processes of a user's environments beside it."""
    environment = config.environment
    beside = environment.processes * environment.cpus_per_process if is_class(environment.name) else 0.0
    return config.rollout.cpus_per_worker + beside


def gpus_per_worker(config: RunConfig) -> float:
    """Cards of one engine: its tensor-parallel ranks, where the setting leaves it open."""
    if config.cluster.device is Device.cpu:
        return 0.0
    return config.rollout.gpus_per_worker or float(config.rollout.tensor_parallel_size)


def gpus_per_replica(config: RunConfig) -> float:
    """Cards of one reward replica; rules compute on the CPU."""
    return config.reward.gpus_per_replica if config.reward.model else 0.0


def total_cpus(requests: list[RoleRequest]) -> float:
    """Ray CPUs of all roles together."""
    return sum(r.count * r.cpus for r in requests)


def _learner(role: str, config: LearnerConfig) -> RoleRequest:
    return RoleRequest(role, config.num_ranks, config.cpus_per_rank, config.gpus_per_rank)
