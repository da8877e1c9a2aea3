"""The environment of one rank's process. It imports no model: a command starts fork servers before it can load one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raylign.cluster import preloads
from raylign.cluster.placement import Placement, Slot
from raylign.cluster.runtime_env import RoleEnv
from raylign.conf.schema import Device


@dataclass(frozen=True, slots=True)
class RankProcess:
    """What decides the environment of a rank, beside its place."""

    device: Device
    threads: int  # 0: cores of the node divided by ranks on it
    loopback: bool  # the whole run is on this machine
    env: Mapping[str, str]  # of the run's own choice (cluster.env): it wins over ours


def rank_environment(
    process: RankProcess, placement: Placement, slot: Slot, cores: Mapping[str, int]
) -> dict[str, str]:
    """Variables of one rank's process. `cores`: CPU cores by node id."""
    here, neighbours = cores[slot.node_id], placement.neighbours(slot)
    threads = process.threads or max(1, here // neighbours)
    own_cores = placement.alone(slot) and threads * neighbours <= here
    env = RoleEnv(
        process.device,
        threads,
        loopback=process.loopback,
        keeps_pages=True,
        grows=True,
        own_cores=own_cores,
        preload=preloads.LEARNER,
    )
    return {**env.variables(), **process.env}
