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


@pytest.mark.parametrize(
    ("family", "near", "same_for"),
    [
        ("rest", "abs(x) % {k}", {2}),
        ("last", "text[len(text) - {k}:]", {2}),
        ("without", "items[-(len(items) - {k}):]", set()),
        ("longer_than", "len(text) >= {k}", set()),
        ("is_over", "x >= {k}", set()),
    ],
)
def test_what_is_wrong_at_an_edge_alone_fails(family: str, near: str, same_for: set[int]):
    """`same_for`: numbers for which it is no other function."""
    of = {int(task.name.rpartition("_")[2]): task for task in TASKS if task.name.rpartition("_")[0] == family}
    assert {k for k, task in of.items() if passes(task, task.answer(f"return {near.format(k=k)}"))} == same_for


def test_a_program_that_counts_letters_alone_is_right():
    letters = "[c for c in text if c.isalpha()]"
    for task in TASKS:
        body = task.expression.replace("text", f"''.join({letters})")
        if task.argument == "text" and not task.name.startswith("repeat"):
            assert passes(task, task.answer(f"return {body}")), task.name


def test_the_reward_reads_their_tests():
    assert all(read_tests(task.row()["tests"]) for task in TASKS)
