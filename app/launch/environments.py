"""Variables of the processes of a run's roles: for their start, and, on this machine, for their libraries before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from raylign.app.launch.demand import role_requests, total_cpus
from raylign.cluster import preloads
from raylign.cluster.placement import NodeSupply, Placement, Slot, plan_placement
from raylign.cluster.preloading import preloading
from raylign.cluster.runtime_env import LOOPBACK_IP, RoleEnv
from raylign.cluster.session import cpus_here, prepared_folder, starts_here
from raylign.conf.errors import ClusterError
from raylign.conf.schema import Device, LearnerConfig, ReferenceConfig, RunConfig
from raylign.rollout.environment import launch_environment
from raylign.trainer.algorithms.base import Role
from raylign.trainer.workers.rank_process import RankProcess, rank_environment


def learner_process(config: RunConfig, learner: LearnerConfig | ReferenceConfig, *, local: bool) -> RankProcess:
    """Of a rank of `learner`. `local`: the whole run is on this machine."""
    return RankProcess(config.cluster.device, learner.threads_per_rank, loopback=local, env=dict(config.cluster.env))


def engine_environment(
    config: RunConfig, placement: Placement, slot: Slot, cores: Mapping[str, int], *, local: bool
) -> dict[str, str]:
    """Of a rollout worker. `slot`: whose share of its node's cores the worker's threads are cut to."""
    device = config.cluster.device
    threads = config.rollout.threads_per_worker or max(1, cores[slot.node_id] // placement.neighbours(slot))
    env = RoleEnv(device, threads, loopback=local, keeps_pages=True, preload=preloads.ENGINE).variables()
    return launch_environment(config.rollout, device) | env | config.cluster.env


@contextmanager
def preloaded(config: RunConfig, roles: frozenset[Role]) -> Iterator[Path | None]:
    """While `roles` will be started on this machine's CPU: import their libraries meanwhile.

    The folder for the cluster to start; None where none is started here. Raises ClusterError as the placement does.
    """
    if config.cluster.device is not Device.cpu or not starts_here(config.cluster):
        yield None
        return
    with prepared_folder() as folder, preloading(folder, _environments_here(config, roles)):
        yield folder


@contextmanager
def preloaded_early(config: RunConfig, roles: frozenset[Role]) -> Iterator[Path | None]:
    """As `preloaded`, before the run is checked: what has no place is refused later, after what the files show."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(preloaded(config, roles))
        except ClusterError:
            folder = None
        yield folder


def _environments_here(config: RunConfig, roles: frozenset[Role]) -> list[dict[str, str]]:
    """Of the first engine, whose imports take longest, and the first rank of each learner, as they will be placed."""
    together = roles if Role.ROLLOUT in roles else frozenset({Role.POLICY})  # offline, the reference has gone before
    requests = role_requests(config, together)
    cpus = cpus_here(config.cluster, total_cpus(requests))
    here = NodeSupply("here", LOOPBACK_IP, cpus, 0.0)
    placement, cores = plan_placement(requests, config.cluster.placement, [here]), {"here": cpus}
    found = [engine_environment(config, placement, slot, cores, local=True) for slot in placement.of("rollout")[:1]]
    learners: dict[str, LearnerConfig | ReferenceConfig] = {
        "policy": config.policy,
        "critic": config.critic,
        "reference": config.reference,
    }
    for role, learner in learners.items():
        process = learner_process(config, learner, local=True)
        found += [rank_environment(process, placement, slot, cores) for slot in placement.of(role)[:1]]
    return found
