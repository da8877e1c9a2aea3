"""Where weights cannot go by broadcast. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from raylign.conf.problems import Problem
from raylign.conf.schema import Device, PlacementStrategy, RunConfig, SyncTransport

_KEY = "sync.transport"
_SAID = f"{_KEY}=broadcast"
_INSTEAD = f"set {_KEY}=object_store"


def check_transport(config: RunConfig, *, rollout: bool) -> Iterator[Problem]:
    """Every problem of `sync.transport=broadcast`; `rollout`: whether the algorithm has engines."""
    if config.sync.transport is not SyncTransport.broadcast or not rollout:
        return
    if config.cluster.placement is PlacementStrategy.colocated:
        yield Problem(
            (_KEY, "cluster.placement"),
            f"{_SAID} with cluster.placement=colocated: a learner that sends has its card while the engine that "
            f"receives needs it; {_INSTEAD}.",
        )
        return
    shares = {
        "policy.gpus_per_rank": config.policy.gpus_per_rank,
        "rollout.gpus_per_worker": config.rollout.gpus_per_worker,
    }
    shared = [f"{key}={share:g}" for key, share in shares.items() if 0 < share < 1]
    if config.cluster.device is Device.cuda and shared:
        yield Problem(
            (_KEY, *shares),
            f"{_SAID} with {' and '.join(shared)}: NCCL refuses two members on one card; {_INSTEAD}, or give policy "
            "and engines whole cards.",
        )
