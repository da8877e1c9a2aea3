"""Where weights cannot go by broadcast, and where attention has no float32, is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from raylign.app.configuration import compose
from raylign.conf.errors import ConfigError
from raylign.conf.schema import SyncTransport

BROADCAST = "sync.transport=broadcast"


@pytest.fixture
def base(tmp_path: Path) -> list[str]:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    model = tmp_path / "model"
    return [f"policy.model={model}", f"reward.model={model}", f"data.train={tmp_path / 'rows.jsonl'}"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["+experiment=ppo_7b_colocated_1x8", BROADCAST], "with cluster.placement=colocated: .*=object_store"),
        (["+experiment=ppo_tiny_cpu", "cluster.placement=colocated", BROADCAST], "with cluster.placement=colocated"),
        (["+experiment=ppo_small_1x1", BROADCAST], "NCCL refuses two members on one card; set .*=object_store"),
        (["+experiment=ppo_7b_1x8", "policy.precision=float32"], "policy.precision=float32 .*=bfloat16"),
        (["+experiment=ppo_7b_1x8", "reference.precision=float32"], "reference.precision=float32 .*=bfloat16"),
        (["+experiment=rm_7b_1x8", "policy.precision=float32"], "policy.precision=float32 .*=bfloat16"),
    ],
)
def test_refused_with_the_way_out(base: list[str], settings: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        compose([*settings, *base])


@pytest.mark.parametrize("experiment", ["ppo_7b_1x8", "grpo_70b_4x8", "ppo_tiny_cpu"])
def test_whole_cards_and_a_cpu_take_a_broadcast(base: list[str], experiment: str) -> None:
    algorithm = experiment.split("_")[0]
    composed = compose([f"+experiment={experiment}", f"algorithm={algorithm}", BROADCAST, *base])
    assert composed.config.sync.transport is SyncTransport.broadcast
