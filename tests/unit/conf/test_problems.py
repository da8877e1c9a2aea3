"""Only the first error where others follow from it, and every error that stands by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from raylign.app.configuration import compose
from raylign.conf.errors import ConfigError
from raylign.conf.problems import Problem, root_problems


@pytest.fixture
def given(tiny_model_dir: Path, tmp_path: Path) -> dict[str, str]:
    """Settings of an online run that would work, by key."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "What is a river?"}\n')
    return {
        "+experiment": "grpo_tiny_cpu",
        "policy.model": str(tiny_model_dir),
        "data.train": str(rows),
        "reward.rules": "[{rule: finished}]",
    }


def problems(given: dict[str, str], changes: str) -> list[str]:
    """What is refused when `changes` are made: `key=value`, or `-key` for one that is left out."""
    settings = dict(given)
    for change in changes.split():
        if change.startswith("-"):
            settings.pop(change[1:])
        else:
            key, _, value = change.partition("=")
            settings[key] = value
    with pytest.raises(ConfigError) as refused:
        compose([f"{key}={value}" for key, value in settings.items()])
    return list(refused.value.problems)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ("-reward.rules reward.rulez=[]", "reward.rulez"),
        ("-reward.rules reward.nonsense=1", "reward.nonsense"),  # none of the section's is meant: all of them may be
        ("-reward.rules reward_model=/x", "reward_model"),  # another trainer's name
        ("-reward.rules reward.functions=my.py:score", "reward.functions"),
        ("-reward.rules reward.functions=[{weight:1}]", "reward.functions[0]"),
        ("-reward.rules reward=[1]", "reward is a section"),
        ("-policy.model policy.modle=/x", "policy.modle"),
        ("-policy.model model_name_or_path=/x", "model_name_or_path"),
        ("-data.train dataset=rows.jsonl", "dataset"),
        ("-data.train data.trian=rows.jsonl", "data.trian"),
        ("data.evl=rows.jsonl evaluation.samples=4", "data.evl"),
        ("data.evl=rows.jsonl evaluation.best=eval/held_out/loss +experiment=dpo_tiny_cpu -reward.rules", "data.evl"),
        ("rollout.prompts_per_step=0", "rollout.prompts_per_step"),
        ("algorithm.sequences_per_update=0", "algorithm.sequences_per_update"),
        ("rollout.max_new_tokens=-5", "rollout.max_new_tokens"),
        ("rollout.max_new_tokens=many rollout.max_model_len=20", "rollout.max_new_tokens"),
        ("rollout.max_new_token=90 reward.overlong_window=80", "rollout.max_new_token"),
        ("num_steps=0 num_epochs=0", "num_steps"),
        ("cluster.device=gpu policy.gpus_per_rank=1", "cluster.device"),
        ("policy.lora.rnk=8 policy.lora.alpha=3", "policy.lora.rnk"),
        ("algorithm.importance_cap=0 rollout.max_stalness=2", "rollout.max_stalness"),
        ("rollout.num_workers=0 rollout.autoscale.max_workers=2", "rollout.num_workers"),
        ("cluster.placement=colocated rollout.max_staleness=-1", "rollout.max_staleness"),
        ("rollout.samples_per_prompt=one", "rollout.samples_per_prompt"),
        ("policy.optim.schedule=cosin", "policy.optim.schedule"),
    ],
)
def test_only_the_cause_is_reported(given: dict[str, str], changes: str, cause: str) -> None:
    (problem,) = problems(given, changes)
    assert problem.startswith(cause), problem


@pytest.mark.parametrize(
    ("changes", "starts"),
    [
        ("-reward.rules reward.clip=-1", ("reward.clip", "reward.model, reward.rules")),
        ("-policy.model -data.train", ("data.train", "policy.model")),
        ("policy.model=/gone data.train=/gone.jsonl", ("data.train", "policy.model")),
        ("data.train=/gone.jsonl data.columns={promt:q}", ("data.train", "data.columns")),
        ("policy.optim.lrr=1 policy.optim.lr=x", ("policy.optim.lrr", "policy.optim.lr=x")),
        ("rollout.stop=[''] rollout.stop_token_ids=[-1]", ("rollout.stop=", "rollout.stop_token_ids")),
        ("policy.num_ranks=0 policy.lora.alpha=3", ("policy.num_ranks", "policy.lora.alpha")),
    ],
)
def test_problems_that_stand_by_themselves_are_all_reported(
    given: dict[str, str], changes: str, starts: tuple[str, ...]
) -> None:
    found = problems(given, changes)
    assert len(found) == len(starts) and all(map(str.startswith, found, starts)), found


def test_a_consequence_of_a_consequence_is_not_hidden_by_it() -> None:
    """b follows from a and is not reported; c shares a setting with b only, so it stands by itself."""
    a, b, c = Problem(("x",), "a"), Problem(("x", "y"), "b"), Problem(("y", "z"), "c")
    assert root_problems([b, a, c]) == [a, c]


def test_a_later_stage_follows_from_an_earlier_one_and_not_the_other_way_round() -> None:
    unreadable, too_small = Problem(("x", "y"), "unreadable"), Problem(("x",), "too small")
    assert root_problems([unreadable], [too_small]) == [unreadable]
    assert root_problems([too_small], [unreadable]) == [too_small]


def test_a_section_at_fault_covers_what_is_in_it_and_an_element_its_list() -> None:
    combined = Problem(("reward.rules", "rollout.stop"), "combined")
    for at_fault in ("reward", "reward.rules", "reward.rules[0].weight"):
        cause = Problem((at_fault,), "cause")
        assert root_problems([cause, combined]) == [cause]
    other = Problem(("reward.rulesets",), "other")
    assert root_problems([other, combined]) == [other, combined]
