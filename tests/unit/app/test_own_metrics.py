"""Held-out metrics of a user's own: all answers together, a number or none, and never a 0 for what failed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from raylign.app.launch.own_metrics import OwnMetrics, metric_problems
from raylign.conf.schema import DataConfig, EvalConfig, HeldOutMetricConfig, RewardConfig, RuleRewardConfig, RunConfig
from raylign.data.types import Completion, FinishReason, Message, Prompt, SampleKey
from raylign.trainer.algorithms.rloo import RLOOConfig

EXAMPLE = Path(__file__).parents[3] / "examples" / "my_metric.py"
ANSWERS = [
    (
        Prompt(str(i), (Message("user", f"What is {i}?"),), (1,), ground_truth=str(i), columns=f'{{"level": {i}}}'),
        Completion(SampleKey(-1, str(i), 0), (2, 3), (-0.1, -0.1), FinishReason.STOP, (), text),
    )
    for i, text in enumerate(["one two", "two three", "one two"])
]


def measured(*given: HeldOutMetricConfig) -> tuple[dict[str, float], list[str]]:
    told: list[str] = []
    metrics = OwnMetrics.start(EvalConfig(metrics=list(given)), told.append)
    try:
        return dict(asyncio.run(metrics.measure(ANSWERS))), told
    finally:
        metrics.stop()


@pytest.mark.slow
def test_it_sees_all_answers_with_their_rows_and_the_example_works(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "async def level(prompts, completions, ground_truth, level):\n"
        "    assert [p[-1]['content'] for p in prompts] == ['What is 0?', 'What is 1?', 'What is 2?']\n"
        "    return sum(l * (t == str(l)) for l, t in zip(level, ground_truth)) + len(completions)\n"
    )
    found, told = measured(
        HeldOutMetricConfig(path=f"{tmp_path}/m.py:level"), HeldOutMetricConfig(path=f"{EXAMPLE}:variety", name="v")
    )
    assert found == {"level": 6.0, "v/words": 0.5, "v/answers": pytest.approx(2 / 3), "metrics_failed": 0.0}
    assert told == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("raise KeyError('mine')", "it raised KeyError: 'mine'"),
        ("return None", "it gave None; return a number"),
        ("return float('nan')", "it gave nan"),
        ("return 'high'", "it gave str, not a number"),
        ("return [0.5] * len(completions)", "it gave list, not a number"),
        ("return {}", "an empty mapping"),
        ("return {'a': 1, 'b': None}", "it gave None for 'b'"),
        ("return {'a b': 1}", "named a number 'a b'"),
        ("import time; time.sleep(60)", "did not answer within 0.5 s"),
        ("import os; os._exit(3)", "its process ended with code 3"),
    ],
)
def test_what_fails_has_no_value_is_named_and_leaves_the_others(tmp_path: Path, body: str, why: str) -> None:
    source = f"def bad(completions):\n    {body}\ndef good(completions):\n    return 2\n"
    (tmp_path / "m.py").write_text(source)
    bad = HeldOutMetricConfig(path=f"{tmp_path}/m.py:bad", timeout_s=0.5)
    found, told = measured(bad, HeldOutMetricConfig(path=f"{tmp_path}/m.py:good"))
    assert found == {"good": 2.0, "metrics_failed": 1.0}
    (sentence,) = told
    assert sentence.startswith(f"evaluation.metrics: {bad.path} has no value at this evaluation: ") and why in sentence


@pytest.mark.slow
def test_one_that_hung_is_asked_again_in_a_new_process(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    (tmp_path / "m.py").write_text(
        "import pathlib, time\ndef slow(completions):\n"
        f"    flag = pathlib.Path({str(flag)!r})\n"
        "    if not flag.exists():\n        flag.touch()\n        time.sleep(60)\n"
        "    return 1\n"
    )
    metrics = OwnMetrics.start(
        EvalConfig(metrics=[HeldOutMetricConfig(path=f"{tmp_path}/m.py:slow", timeout_s=1.0)]), lambda _: None
    )
    assert [asyncio.run(metrics.measure(ANSWERS)).get("slow") for _ in range(2)] == [None, 1.0]
    metrics.stop()


@pytest.mark.slow
def test_what_cannot_be_called_is_refused_before_a_run(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def f(answers):\n    return 1\ndef reward(completions):\n    return 1\n")
    rows = tmp_path / "rows.jsonl"
    given = [
        HeldOutMetricConfig(path=f"{tmp_path}/m.py:{name}") for name in ("f", "gone", "reward")
    ]  # fmt: skip
    config = RunConfig(
        algorithm=RLOOConfig(),
        data=DataConfig(eval=str(rows)),
        reward=RewardConfig(rules=[RuleRewardConfig(rule="finished")]),
        evaluation=EvalConfig(metrics=given),
    )
    wrong, gone, taken = metric_problems(config, online=True)
    assert "gives completions by name, which it does not take" in wrong and "has no function 'gone'" in gone
    assert "evaluation.metrics: reward is taken" in taken
    assert "offline runs generate no answers" in metric_problems(config, online=False)[0]
    config.data.eval = ""
    assert "data.eval is empty" in metric_problems(config, online=True)[0]
