"""The arithmetic of benchmarks/online_vs_trl.py on runs made up here, and the settings it gives to both sides."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from raylign.app.configuration import compose
from raylign.reward.rules import build_rule

from benchmarks.online_sides.trl_run import near_target, settings
from benchmarks.online_vs_trl import Comparison, Job, Run, our_command, write_prompts


def run(step: float, whole: float, tokens: float = 100.0) -> Run:
    return Run(whole, (9 * step, step, step, step), (1.0, tokens, tokens, tokens), 50.0, 2.0)


def test_the_first_step_is_left_out_and_the_long_run_is_the_run_and_the_missing_steps():
    one = run(step=2.0, whole=40.0)
    assert one.step_s == 2.0 and one.tokens_per_s == 50.0
    assert one.long_s == 40.0 + 46 * 2.0


def test_ratios_are_to_the_faster_peer_pair_by_pair_and_the_share_is_of_the_pairs_ceiling():
    pairs = (
        {"ours": run(2.0, 40.0), "trl": run(8.0, 50.0), "trl-best": run(6.0, 60.0)},
        {"ours": run(2.0, 40.0), "trl": run(4.0, 90.0), "trl-best": run(6.0, 80.0)},
    )
    ours, trl, _ = Comparison("grpo", "float32", pairs, (1e6, 1e6), 1000).rows()
    assert ours[2] == "2.50 (2.00-3.00)"  # 6 / 2 and 4 / 2
    assert ours[4] == "1.62 (1.25-2.00)"  # 50 / 40 and 80 / 40
    assert ours[-1] == "50%"  # 10 operations x 1000 parameters x 50 tokens/s of 1e6
    assert trl[2] == ""


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "ppo"])
def test_our_side_is_a_run_with_one_update_a_step(algorithm: str, tiny_model_dir: Path, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    write_prompts(None, rows)
    job = Job("ours", algorithm, "bfloat16", str(tiny_model_dir), str(rows), 4, str(tmp_path), "told")
    config = compose(our_command(job)[4:]).config
    answers = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    assert config.algorithm.units_per_update == answers == 32 and config.algorithm.passes_per_step == 1
    assert config.rollout.max_new_tokens == 64 and config.policy.precision.value == "bfloat16"
    theirs = settings({**vars_of(job), "side": "trl"})
    assert theirs["per_device_train_batch_size"] == answers and theirs["max_completion_length"] == 64
    assert (theirs["beta"], theirs["learning_rate"]) == (config.algorithm.kl_coef, config.policy.optim.lr)
    assert "gradient_checkpointing" not in theirs and not settings({**vars_of(job)})["gradient_checkpointing"]


def vars_of(job: Job) -> dict[str, object]:
    return {name: getattr(job, name) for name in Job.__slots__}


def test_both_sides_pay_for_the_same_lengths():
    rule = build_rule("length_target:32")
    lengths = (0, 1, 31, 32, 40, 64, 90)
    ours = [rule(None, SimpleNamespace(sampled_ids=(1,) * n)) for n in lengths]  # it reads nothing else
    assert near_target([[1] * n for n in lengths]) == pytest.approx(ours)
