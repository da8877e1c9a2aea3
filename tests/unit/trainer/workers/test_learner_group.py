"""How long a rank's threads wait awake for each other: not at all where another process wants the core."""

from __future__ import annotations

import pytest
from raylign.cluster.placement import NodeSupply, RoleRequest, plan_placement
from raylign.conf.schema import Device, PlacementStrategy
from raylign.trainer.workers.learner_group import RankProcess, rank_environment

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
