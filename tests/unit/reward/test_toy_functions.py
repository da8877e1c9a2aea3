"""The shipped small functions: what is right passes its tests, and what comes near does not."""

from __future__ import annotations

import re

import pytest
from raylign.reward.code_tests import read_tests
from raylign.reward.sandbox.toy_functions import ToyFunction, toy_functions

TASKS = list(toy_functions())


def passes(task: ToyFunction, answer: str) -> bool:
    names: dict[str, object] = {}
    code = re.search(r"```python\n(.*)\n```", answer, re.DOTALL)
    assert code is not None
    exec(code[1], names)
    try:
        for test in task.row()["tests"]:
            exec(test, names)
    except AssertionError:
        return False
    return True


def test_they_are_many_and_each_is_another():
    assert len(TASKS) == 144
    for shown in ("name", "prompt", "right"):
        assert len({getattr(task, shown) for task in TASKS}) == len(TASKS)


@pytest.mark.parametrize("task", TASKS[5::12], ids=lambda task: task.name)
def test_the_right_answer_passes_and_near_ones_fail(task: ToyFunction):
    assert passes(task, task.right) and task.row()["ground_truth"] == task.right
    wrong = [f"return {task.argument}", f"{task.expression}", "return None", "return True", "return 0"]
    neighbour = next(t for t in TASKS if t.meaning == task.meaning.replace("7", "8") and t != task)
    assert not any(passes(task, task.answer(line)) for line in (*wrong, f"return {neighbour.expression}"))


def test_the_reward_reads_their_tests():
    assert all(read_tests(task.row()["tests"]) for task in TASKS)
