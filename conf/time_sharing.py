"""What cannot work where learners and engines take turns on the same cards. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from raylign.conf.problems import Problem
from raylign.conf.schema import Device, PlacementStrategy, RunConfig

_KEY = "cluster.placement"
_SAID = f"{_KEY}=colocated"


def check_time_sharing(config: RunConfig, *, rollout: bool, critic: bool) -> Iterator[Problem]:
    """Every problem of `cluster.placement=colocated`; `rollout`, `critic`: whether the algorithm has them."""
    if config.cluster.placement is not PlacementStrategy.colocated:
        return
    engines = config.rollout
    if not rollout:
        yield Problem(
            (_KEY,),
            f"{_SAID}: algorithm={config.algorithm.name} has no engines that learners could take turns with; set "
            f"{_KEY}=shared.",
        )
        return
    if engines.max_staleness:
        yield Problem(
            (_KEY, "rollout.max_staleness"),
            f"{_SAID} with rollout.max_staleness={engines.max_staleness}: engines sleep while learners train, so "
            f"nothing can be generated ahead; set rollout.max_staleness=0, or another {_KEY}.",
        )
    if engines.autoscale.max_workers:
        yield Problem(
            (_KEY, "rollout.autoscale.max_workers"),
            f"{_SAID} with rollout.autoscale.max_workers={engines.autoscale.max_workers}: engines on the learners' "
            "cards neither join nor leave; set rollout.autoscale.max_workers=0.",
        )
    if config.cluster.device is Device.cuda:
        yield from _shares(config, critic=critic)


def _shares(config: RunConfig, *, critic: bool) -> Iterator[Problem]:
    """Each of the two or three on a card has a share by which Ray counts; its memory is all of whose turn it is."""
    engines = config.rollout
    if engines.tensor_parallel_size > 1:
        yield Problem(
            (_KEY, "rollout.tensor_parallel_size"),
            f"{_SAID} with rollout.tensor_parallel_size={engines.tensor_parallel_size}: an engine can share one card, "
            f"not several; set rollout.tensor_parallel_size=1, or another {_KEY}.",
        )
        return
    shares = {"policy.gpus_per_rank": config.policy.gpus_per_rank, "rollout.gpus_per_worker": engines.gpus_per_worker}
    if critic:
        shares["critic.gpus_per_rank"] = config.critic.gpus_per_rank
    if not all(0 < share < 1 for share in shares.values()) or sum(shares.values()) > 1 + 1e-6:
        each = 1 / len(shares)
        yield Problem(
            (_KEY, *shares),
            f"{_SAID}: {', '.join(f'{key}={share:g}' for key, share in shares.items())} must be shares of one card "
            f"that add up to at most 1; set each to {int(each * 100) / 100:g}.",
        )
