"""Settings of the prompts' order that cannot work are refused by name, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from raylign.app.configuration import compose
from raylign.conf.errors import ConfigError


@pytest.mark.parametrize(
    ("experiment", "setting", "sentence"),
    [
        ("grpo", "data.mix={a: -1}", r"data.mix=\{'a': -1.*\}: shares are numbers of 0 or more"),
        ("grpo", "data.mix={a: 0}", "at least one is above 0"),
        ("grpo", "data.curriculum.min_weight=0", "data.curriculum.min_weight=0: must be above 0 and at most 1"),
        ("grpo", "data.curriculum.max_draws=-1", "data.curriculum.max_draws=-1: must be at least 0"),
        ("ppo", "data.curriculum.min_weight=0.5", "one answer a prompt is always solved or never"),
        ("sft", "data.mix={a: 1}", "data.mix is set: only online runs draw prompts by weight"),
        ("sft", "data.curriculum.max_draws=2", "data.curriculum.max_draws is set: only online"),
    ],
)
def test_refused_with_the_way_out(tmp_path: Path, experiment: str, setting: str, sentence: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    given = [f"policy.model={tmp_path}", f"data.train={tmp_path / 'rows.jsonl'}", setting]
    if experiment != "sft":
        given += ["reward.rules=[{rule: finished}]"]
    if experiment == "ppo":
        given += [f"critic.model={tmp_path}", "rollout.samples_per_prompt=1", "algorithm.sequences_per_update=8"]
    with pytest.raises(ConfigError, match=sentence):
        compose([f"+experiment={experiment}_tiny_cpu", *given])
