from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raylign.cluster.placement import NodeSupply, RoleRequest, Side, plan_placement
from raylign.cluster.reserve import _bundle, bundles_of
from raylign.conf.errors import ClusterError
from raylign.conf.schema import PlacementStrategy

SHARED, SEPARATE, ONE_NODE = PlacementStrategy.shared, PlacementStrategy.separate, PlacementStrategy.one_node


def node(name: str, *, cpus: float = 8, gpus: float = 8) -> NodeSupply:
    return NodeSupply(name, f"10.0.0.{name}", cpus, gpus)


def policy(count: int, *, cpus: float = 1, gpus: float = 1) -> RoleRequest:
    return RoleRequest("policy", count, cpus, gpus)


def rollout(count: int, *, cpus: float = 1, gpus: float = 1) -> RoleRequest:
    return RoleRequest("rollout", count, cpus, gpus, side=Side.SERVE, elastic=True, spread=True)


def test_collectives_pack_and_workers_spread() -> None:
    placement = plan_placement([policy(4), rollout(2)], SHARED, [node("1"), node("2")])
    assert len(placement.nodes_of("policy")) == 1
    assert len(placement.nodes_of("rollout")) == 2
    assert [s.rank for s in placement.of("policy")] == [0, 1, 2, 3]


def test_separate_keeps_the_sides_on_disjoint_nodes() -> None:
    nodes = [node("1", gpus=4), node("2", gpus=4), node("3", gpus=8)]
    placement = plan_placement([policy(8), rollout(6)], SEPARATE, nodes)
    assert not set(placement.nodes_of("policy")) & set(placement.nodes_of("rollout"))
    roomy = plan_placement([policy(1), rollout(3)], SEPARATE, [node("1"), node("2")])
    assert not set(roomy.nodes_of("policy")) & set(roomy.nodes_of("rollout"))


def test_separate_on_one_machine_is_refused_with_the_way_out() -> None:
    with pytest.raises(ClusterError, match=r"separate.*different machines.*shared"):
        plan_placement([policy(1), rollout(1)], SEPARATE, [node("1")])


def test_one_node_uses_the_machine_that_holds_everything() -> None:
    nodes = [node("1", cpus=2, gpus=2), node("2", cpus=16, gpus=4), node("3", cpus=16, gpus=0)]
    placement = plan_placement([policy(2), rollout(2)], ONE_NODE, nodes)
    assert {s.node_id for s in placement.slots} == {"2"}


def test_refusal_states_demand_and_supply_by_resource_and_role() -> None:
    with pytest.raises(ClusterError) as refusal:
        plan_placement([policy(8), rollout(4, gpus=2)], SHARED, [node("1", gpus=4), node("2", gpus=4)])
    message = str(refusal.value)
    assert "GPU: policy 8 x 1 + rollout 4 x 2 = 16 requested, the cluster has 8" in message
    assert "CPU:" not in message  # 12 of 16: only what is short is named
    assert "10.0.0.1 (8 CPU, 4 GPU)" in message
    assert refusal.value.exit_code == 2


def test_whole_processes_must_fit_though_the_sums_do() -> None:
    with pytest.raises(ClusterError, match="one of the processes finds no machine with room"):
        plan_placement([rollout(1, gpus=3)], SHARED, [node("1", gpus=2), node("2", gpus=2)])


def test_shares_are_of_single_cards() -> None:
    with pytest.raises(ClusterError, match="a share of a GPU is of one card"):
        plan_placement([rollout(3, gpus=0.6)], SHARED, [node("1", gpus=2)])  # 1.8 of 2, and Ray never places it
    halves = [policy(1), rollout(2, gpus=0.5)]
    assert len(plan_placement(halves, SHARED, [node("1", gpus=2)]).slots) == 3


def test_tenths_of_a_cpu_add_up() -> None:
    placement = plan_placement([policy(10, cpus=0.1, gpus=0)], SHARED, [node("1", cpus=1, gpus=0)])
    assert len(placement.slots) == 10


def test_cpu_roles_leave_gpu_nodes_alone_when_they_can() -> None:
    nodes = [node("1", gpus=8), node("2", gpus=0)]
    placement = plan_placement([policy(2, gpus=0)], SHARED, nodes)
    assert placement.nodes_of("policy") == ("2",)


def test_an_empty_cluster_is_refused() -> None:
    with pytest.raises(ClusterError, match="no live node"):
        plan_placement([policy(1)], SHARED, [])


@given(
    st.lists(st.tuples(st.integers(1, 16), st.integers(0, 8)), min_size=1, max_size=5),
    st.integers(1, 6),
    st.integers(0, 3),
    st.integers(1, 6),
    st.integers(0, 3),
    st.sampled_from(list(PlacementStrategy)),
)
def test_a_placement_never_oversubscribes_and_forgets_nobody(
    supply: list[tuple[int, int]], ranks: int, rank_gpus: int, workers: int, gpus: int, strategy: PlacementStrategy
) -> None:
    nodes = [node(str(i), cpus=c, gpus=g) for i, (c, g) in enumerate(supply)]
    requests = [policy(ranks, gpus=rank_gpus), rollout(workers, cpus=0.5, gpus=gpus)]
    try:
        placement = plan_placement(requests, strategy, nodes)
    except ClusterError:
        return
    assert len(placement.slots) == ranks + workers
    for machine in nodes:
        here = [s for s in placement.slots if s.node_id == machine.node_id]
        assert sum(s.cpus for s in here) <= machine.cpus + 1e-6
        assert sum(s.gpus for s in here) <= machine.gpus + 1e-6


def test_a_role_goes_to_nodes_of_its_kind_and_a_mistyped_label_is_named() -> None:
    kinds = ("on-demand", "spot", "spot")
    nodes = [replace(node(str(i)), labels={"market": kind}) for i, kind in enumerate(kinds)]
    learners = replace(policy(4), labels=(("market", "on-demand"),))
    workers = replace(rollout(4), labels=(("market", "spot"),))
    placement = plan_placement([learners, workers], SHARED, nodes)
    assert placement.nodes_of("policy") == ("0",) and set(placement.nodes_of("rollout")) == {"1", "2"}
    with pytest.raises(
        ClusterError,
        match=r"^cluster\.serving_labels: no node has market=sopt, which rollout requests; labels of the nodes: "
        r"market=on-demand, market=spot; start a node with `ray start --labels=market=sopt`",
    ):
        plan_placement([replace(workers, labels=(("market", "sopt"),))], SHARED, nodes)


TURNS = PlacementStrategy.colocated


def taking_turns(*requests: RoleRequest) -> list[RoleRequest]:
    return [replace(request, takes_turns=True) for request in requests]


def test_roles_that_take_turns_share_cards_and_no_two_ranks_of_one_role_do() -> None:
    third = 0.33
    shared = taking_turns(policy(6, gpus=third), rollout(5, gpus=third), RoleRequest("critic", 6, 1, third))
    frozen = [RoleRequest("reference", 1, 1, 0.5), RoleRequest("reward", 1, 1, 0.5, side=Side.SERVE, elastic=True)]
    placement = plan_placement([*frozen, *shared], TURNS, [node("1", cpus=32, gpus=4), node("2", cpus=32, gpus=3)])
    cards = {role: [(s.node_id, s.card) for s in placement.of(role)] for role in ("policy", "critic", "rollout")}
    assert all(len(set(found)) == len(found) for found in cards.values())
    assert set(cards["rollout"]) <= set(cards["policy"]) == set(cards["critic"])
    assert [s.card for s in placement.of("reference")] == [None]
    # The seventh card is the frozen roles'; without it they would have to sit beside a learner.
    small = [replace(request, gpus=0.2) for request in shared]
    with pytest.raises(ClusterError, match="too few cards of their own"):
        plan_placement([*frozen, *small], TURNS, [node("1", cpus=64, gpus=6)])


def test_one_bundle_is_one_shared_card() -> None:
    shared = taking_turns(policy(2, gpus=0.5), replace(rollout(2, gpus=0.5), elastic=False))
    placement = plan_placement([*shared, RoleRequest("reference", 1, 1, 0.5)], TURNS, [node("1", gpus=3)])
    bundles = bundles_of(placement.slots)
    assert [sorted(slot.role for slot in slots) for slots in bundles] == [["policy", "rollout"]] * 2 + [["reference"]]
    assert [_bundle(slots) for slots in bundles] == [{"CPU": 2, "GPU": 1.0}] * 2 + [{"CPU": 1, "GPU": 0.5}]
