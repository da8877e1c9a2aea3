"""benchmarks/tool_learning.py compares like with like: the same prompt ids with the tool, without it, and in SFT."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from raylign.app.configuration import compose
from raylign.conf.schema import DataConfig
from raylign.data.chat_template import FAMILIES
from raylign.data.prompts import load_prompts
from raylign.data.row_kinds import load_rows
from raylign.data.types import RowKind

from benchmarks.online_curves import write
from benchmarks.tool_learning import RULES, WITH, WITHOUT, settings_of
from benchmarks.tool_tasks import Shares, Task, calculator, examples, prompts, search
from tests.unit.data.chat_families import tokenizer

SIZES = (6, 5, 4)


def made(name: str, folder: Path) -> Task:
    draw = random.Random(1)
    return calculator(draw, SIZES) if name == "calculator" else search(draw, SIZES, folder / "documents")


@pytest.mark.parametrize("name", RULES)
def test_both_arms_and_the_examples_show_the_same_prompt(name: str, tmp_path: Path):
    task, hermes = made(name, tmp_path), tokenizer("qwen", FAMILIES["hermes"].template, "<|im_end|>")
    config = DataConfig(max_bad_fraction=0)
    alone = load_prompts(str(write(prompts(task.shown), tmp_path / "a.jsonl")), config, hermes, tools=task.tools)
    shown = load_prompts(str(write(prompts(task.shown, task.tools), tmp_path / "b.jsonl")), config, hermes)
    assert [p.token_ids for p in alone.prompts] == [p.token_ids for p in shown.prompts]
    assert [p.ground_truth for p in shown.prompts] == [one.truth for one in task.shown]
    rows = write(examples(task, random.Random(1), Shares(0.5, 0.25)), tmp_path / "c.jsonl")
    ids = [ids for ids, _ in load_rows(RowKind.CONVERSATIONS, str(rows), config, hermes).sequences()]
    assert [ids[: len(p.token_ids)] for ids, p in zip(ids, shown.prompts, strict=True)] == [
        p.token_ids for p in shown.prompts
    ]


@pytest.mark.parametrize("name", RULES)
def test_no_question_is_in_two_sets_and_the_tool_knows_what_is_asked(name: str, tmp_path: Path):
    task = made(name, tmp_path)
    asked = [one.question for part in (task.shown, task.train, task.held_out) for one in part]
    assert len(set(asked)) == sum(SIZES)
    assert all(one.truth in one.said and one.truth not in one.question for one in task.held_out)
    right = [row["messages"][-1]["content"] for row in examples(task, random.Random(1), Shares(1.0, 0.0))]
    assert right == [f"It is {one.truth}." for one in task.shown]
    wrong = [row["messages"][-1]["content"] for row in examples(task, random.Random(1), Shares(0.0, 0.5))]
    assert not any(said == f"It is {one.truth}." for said, one in zip(wrong, task.shown, strict=True))


@pytest.mark.parametrize("name", RULES)
def test_the_arms_differ_in_who_answers_a_call_alone(name: str, tmp_path: Path, tiny_model_dir: Path):
    task = made(name, tmp_path)
    (tmp_path / "start").symlink_to(tiny_model_dir)
    runs = {arm: compose([*settings_of(task, arm, 1, tmp_path), "name=same"]).config for arm in (WITH, WITHOUT)}
    tool, control = runs[WITH], runs[WITHOUT]
    assert tool.environment.name == name and not tool.reward.rules
    assert not control.environment.name and [rule.rule for rule in control.reward.rules] == [RULES[name]]
    same = replace(control, environment=tool.environment, reward=tool.reward, data=tool.data)
    assert same == tool
