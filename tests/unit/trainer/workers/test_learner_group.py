"""How long a rank's threads wait awake for each other: not at all where another process wants the core."""

from __future__ import annotations

from typing import Any, cast

import pytest
from raylign.cluster.placement import NodeSupply, RoleRequest, plan_placement
from raylign.cluster.shared_folder import SharedFolder
from raylign.cluster.worker_group import WorkerGroup
from raylign.conf.schema import Device, PlacementStrategy
from raylign.data.types import FinishReason, RolloutMeta, SampleKey
from raylign.rollout.interfaces import GroupHandle, Ref
from raylign.trainer.workers.learner_group import GroupSettings, LearnerGroup
from raylign.trainer.workers.rank_process import RankProcess, rank_environment

SHARED = PlacementStrategy.shared


@pytest.mark.parametrize(
    ("roles", "threads", "spins"),
    [
        ({"policy": 1}, 0, True),
        ({"policy": 1}, 4, True),
        ({"policy": 1}, 5, False),  # more threads than cores
        ({"policy": 2}, 0, True),
        ({"policy": 2}, 2, True),
        ({"policy": 2}, 3, False),
        ({"policy": 1, "critic": 1}, 0, False),
        ({"policy": 1, "critic": 1}, 1, False),
    ],
)
def test_threads_spin_where_the_cores_are_the_roles_own(roles: dict[str, int], threads: int, spins: bool) -> None:
    nodes = [NodeSupply("1", "10.0.0.1", 4, 0)]
    placement = plan_placement([RoleRequest(role, count, 1, 0) for role, count in roles.items()], SHARED, nodes)
    process = RankProcess(Device.cpu, threads, loopback=True, env={})
    for slot in placement.of("policy"):
        variables = rank_environment(process, placement, slot, {"1": 4})
        assert (int(variables["GOMP_SPINCOUNT"]) > 0) == spins
        assert int(variables["OMP_NUM_THREADS"]) == (threads or 4 // roles["policy"])


def test_variables_of_the_runs_own_choice_win() -> None:
    placement = plan_placement([RoleRequest("policy", 1, 1, 0)], SHARED, [NodeSupply("1", "10.0.0.1", 4, 0)])
    own = {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_DEBUG": "INFO"}
    process = RankProcess(Device.cpu, 1, loopback=True, env=own)
    variables = rank_environment(process, placement, placement.of("policy")[0], {"1": 4})
    assert variables | own == variables and variables["OMP_NUM_THREADS"] == "1"


def test_a_role_on_a_node_of_its_own_does_not_mind_others_elsewhere() -> None:
    nodes = [NodeSupply(name, f"10.0.0.{name}", 2, 0) for name in ("1", "2")]
    placement = plan_placement([RoleRequest("policy", 1, 2, 0), RoleRequest("critic", 1, 2, 0)], SHARED, nodes)
    assert all(placement.alone(slot) for slot in placement.slots)


class _Ranks:
    """Four actors and their group: a call answers with its rank and what it was given."""

    def __len__(self) -> int:
        return 4

    def __getattr__(self, name: str) -> Any:
        return self  # an actor's method, and its `remote`

    def __call__(self, *given: Any) -> Any:
        return given

    async def call(self, each: Any, **_: Any) -> list[Any]:
        return [(rank, *each(self, rank)) for rank in range(4)]


def _together(size: int) -> LearnerGroup:
    process = RankProcess(Device.cpu, 1, loopback=True, env={})
    settings = GroupSettings("policy", process, 1024, 60, 60, "", SharedFolder("", ""), sequence_parallel_size=size)
    return LearnerGroup(cast(WorkerGroup, _Ranks()), settings)


async def test_ranks_that_compute_a_batch_together_are_given_the_same_and_answer_once() -> None:
    group = _together(2)
    assert (group.num_ranks, group.num_shards) == (4, 2)
    stop = FinishReason.STOP
    metas = [RolloutMeta(SampleKey(0, name, 0), 3, length, stop, 0, 0, 0.0) for name, length in (("a", 9), ("b", 8))]
    shards = await group.logprobs([GroupHandle(Ref(m.key.prompt_id), (m,)) for m in metas], temperature=1.0)
    answers = cast(Any, shards.refs)
    assert [rank for rank, *_ in answers] == [0, 2]
    assert [refs for _, refs, *_ in answers] == [[metas[g].key.prompt_id for g in share] for share in shards.groups]
    assert sorted(shards.groups) == [(0,), (1,)]
    assert await group.sequence_logprobs(cast(Any, ["first", "second"])) == [(0, "first"), (2, "second")]
    with pytest.raises(ValueError, match="4 shards for 2"):
        await group.update([Ref(n) for n in "abcd"], cast(Any, None))
