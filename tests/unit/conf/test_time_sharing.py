"""What `cluster.placement=colocated` cannot be combined with is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from raylign.app.configuration import compose
from raylign.conf.errors import ConfigError


@pytest.fixture
def base(tmp_path: Path) -> list[str]:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    model = tmp_path / "model"
    return [f"policy.model={model}", f"reward.model={model}", f"data.train={tmp_path / 'rows.jsonl'}"]


PPO = ["algorithm=ppo", "+experiment=ppo_7b_colocated_1x8"]
CPU = ["+experiment=ppo_tiny_cpu", "cluster.placement=colocated"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ([*PPO, "rollout.max_staleness=1"], "nothing can be generated ahead; set rollout.max_staleness=0"),
        ([*PPO, "rollout.autoscale.max_workers=8"], "neither join nor leave; set rollout.autoscale.max_workers=0"),
        ([*PPO, "rollout.tensor_parallel_size=2"], "an engine can share one card, not several"),
        ([*PPO, "rollout.gpus_per_worker=0"], "rollout.gpus_per_worker=0, .* set each to 0.33"),
        ([*PPO, "critic.gpus_per_rank=0.9"], "critic.gpus_per_rank=0.9 must be shares of one card .* set each to 0.33"),
        (["+experiment=sft_tiny_cpu", "cluster.placement=colocated"], "algorithm=sft has no engines .*=shared"),
        ([*CPU, "rollout.max_staleness=1"], "nothing can be generated ahead"),
    ],
)
def test_refused_with_the_way_out(base: list[str], settings: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"cluster.placement=colocated.*{sentence}"):
        compose([*settings, *base])


def test_on_a_cpu_no_share_is_asked_for(base: list[str]) -> None:
    assert compose([*CPU, *base]).config.rollout.gpus_per_worker == 0
