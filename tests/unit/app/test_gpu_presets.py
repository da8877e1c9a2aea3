"""Every GPU experiment fits the cluster its name ends in, by the real placement, and needs all of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from raylign.app.commands.plan import placements
from raylign.app.configuration import compose
from raylign.cluster.placement import NodeSupply
from raylign.conf import reference
from raylign.conf.errors import ClusterError
from raylign.conf.schema import Device, RunConfig

SHAPE = re.compile(r"_(\d+)x(\d+)$")
PRESETS = [name for name in reference.options("experiment") if SHAPE.search(name)]
CPUS_PER_CARD = 12  # of the usual nodes: 96 cores for eight cards


@dataclass(frozen=True)
class Shape:
    nodes: int
    cards: int

    def supply(self, *, less: int = 0) -> list[NodeSupply]:
        each = [self.cards] * self.nodes
        each[-1] -= less
        return [NodeSupply(f"n{i}", f"10.0.0.{i}", CPUS_PER_CARD * self.cards, cards) for i, cards in enumerate(each)]


@pytest.fixture
def composed(request: pytest.FixtureRequest, tmp_path: Path) -> RunConfig:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    named = [f"{role}.model={tmp_path / 'model'}" for role in ("policy", "critic", "reward")]
    return compose([f"+experiment={request.param}", *named, f"data.train={tmp_path / 'rows.jsonl'}"]).config


def test_the_sizes_that_are_shipped() -> None:
    small = {f"{a}_small_1x1" for a in ("ppo", "grpo")}
    seven = {f"{a}_7b_{n}x8" for a in ("sft", "dpo", "rm", "grpo", "ppo") for n in (1, 2)}
    large = {f"{a}_{size}_4x8" for a in ("sft", "grpo") for size in ("32b", "70b")}
    turns = {f"{a}_7b_colocated_1x8" for a in ("grpo", "ppo")}
    assert set(PRESETS) == small | seven | large | turns


@pytest.mark.parametrize("composed", PRESETS, indirect=True)
def test_a_preset_is_placed_on_its_cluster_and_on_no_smaller_one(
    composed: RunConfig, request: pytest.FixtureRequest
) -> None:
    nodes, cards = (int(n) for n in SHAPE.search(request.node.callspec.params["composed"]).groups())
    shape = Shape(nodes, cards)
    assert composed.cluster.device is Device.cuda
    for placement in placements(composed, shape.supply()):
        for role in ("policy", "critic"):
            # ranks of a learner talk every layer: they are on as few nodes as hold them
            assert len(placement.nodes_of(role)) == -(-len(placement.of(role)) // cards)
        for role in ("policy", "critic", "rollout"):
            shared = [(slot.node_id, slot.card) for slot in placement.of(role) if slot.card is not None]
            assert len(shared) == len(set(shared)), f"two processes of {role} share a card"
        for slot in placement.of("rollout"):
            assert slot.gpus in (composed.rollout.tensor_parallel_size, composed.rollout.gpus_per_worker)
    with pytest.raises(ClusterError, match="GPU"):
        list(placements(composed, shape.supply(less=1)))


@pytest.mark.parametrize("composed", PRESETS, indirect=True)
def test_no_default_of_a_laptop_reaches_a_gpu(composed: RunConfig) -> None:
    assert composed.policy.gradient_checkpointing and composed.policy.micro_batch_tokens >= 8192
    assert not composed.rollout.enforce_eager
    assert min(composed.cluster.start_timeout_s, composed.sync.timeout_s) >= 1800
    assert composed.rollout.max_concurrent >= 128
