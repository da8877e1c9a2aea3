"""How many cards each role asks for, and whether its processes can compute on so many. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from raylign.conf.problems import Problem
from raylign.conf.schema import Device, PlacementStrategy, RunConfig


def check_cards(config: RunConfig, *, rollout: bool, critic: bool, reference: bool, reward: bool) -> Iterator[Problem]:
    """GPUs are asked for by exactly the roles that are to compute on one; which roles the algorithm has is given."""
    on_gpu = config.cluster.device is Device.cuda
    learners = {"policy": config.policy} | ({"critic": config.critic} if critic else {})
    takes_turns = config.cluster.placement is PlacementStrategy.colocated  # each rank on another card, by the placement
    asked = {f"{role}.gpus_per_rank": learner.gpus_per_rank for role, learner in learners.items()}
    together = {role: learner.num_ranks for role, learner in learners.items() if not takes_turns}
    if reference:
        asked["reference.gpus_per_rank"] = config.reference.gpus_per_rank
        if config.reference.sharded:
            together["reference"] = config.reference.num_ranks
    if on_gpu:
        yield from _cards_of_ranks(asked, together)
        yield from _sharded_reward(config) if reward and config.reward.model else ()
    if reward and config.reward.model:
        asked |= _whole_reward_gpus(config)
    if on_gpu and rollout:
        yield from _engine_gpus(config)
    elif rollout:
        asked["rollout.gpus_per_worker"] = config.rollout.gpus_per_worker
    for key, gpus in asked.items():
        if on_gpu and not 0 < gpus <= 1:
            yield Problem(
                (key, "cluster.device"),
                f"{key}={gpus:g} with cluster.device=cuda: each process computes on one card; set {key}=1, or a share "
                "such as 0.5 where several processes fit on one.",
            )
        if not on_gpu and gpus > 0:
            yield Problem(
                (key, "cluster.device"),
                f"{key}={gpus:g} with cluster.device=cpu: set {key}=0, or cluster.device=cuda.",
            )


def _cards_of_ranks(asked: Mapping[str, float], together: Mapping[str, int]) -> Iterator[Problem]:
    """`asked`: GPUs by setting; `together`: ranks of each group, by role."""
    for role, ranks in together.items():
        key = f"{role}.gpus_per_rank"
        if 0 < asked[key] < 1 < ranks:
            yield Problem(
                (key, f"{role}.num_ranks"),
                f"{key}={asked[key]:g} with {role}.num_ranks={ranks}: ranks that compute together need a card each "
                f"(NCCL refuses two on one); set {key}=1, or {role}.num_ranks=1.",
            )


def _whole_reward_gpus(config: RunConfig) -> dict[str, float]:
    """What a replica of one process asks for; of several, see `_sharded_reward`."""
    reward = config.reward
    sharded = config.cluster.device is Device.cuda and reward.ranks_per_replica > 1
    return {} if sharded else {"reward.gpus_per_replica": reward.gpus_per_replica}


def _sharded_reward(config: RunConfig) -> Iterator[Problem]:
    """The ranks of a replica have a card each."""
    ranks, given, key = config.reward.ranks_per_replica, config.reward.gpus_per_replica, "reward.gpus_per_replica"
    if ranks > 1 and given != ranks:
        yield Problem(
            (key, "reward.ranks_per_replica"),
            f"{key}={given:g} with reward.ranks_per_replica={ranks}: each rank of a replica needs a card; set "
            f"{key}={ranks}.",
        )


def _engine_gpus(config: RunConfig) -> Iterator[Problem]:
    """An engine's cards are its tensor-parallel ranks; a single one may share its card."""
    rollout, key = config.rollout, "rollout.gpus_per_worker"
    given, size = rollout.gpus_per_worker, rollout.tensor_parallel_size
    if given and given != size and not (size == 1 and given < 1):
        yield Problem(
            (key, "rollout.tensor_parallel_size"),
            f"{key}={given:g} with rollout.tensor_parallel_size={size}: an engine needs one card for each "
            f"tensor-parallel rank; set {key}=0, which follows it.",
        )
