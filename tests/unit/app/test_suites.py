"""Suites that a run must not get worse at: refused before it starts, and what becomes of their figures after it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from raylign.app.commands import evaluate as commands
from raylign.app.configuration import compose, needs
from raylign.app.launch.refusals import refuse_impossible
from raylign.app.launch.suites import answered_before, suite_files, with_suites
from raylign.conf.errors import ConfigError
from raylign.conf.schema import RunConfig
from raylign.evals.results import PromptScore, SuiteResult
from raylign.evals.statistics import Range
from raylign.records.progress import figures_of
from raylign.records.report.facts import read_run
from raylign.records.report.verdict import judge
from raylign.records.run_folder import RunPaths
from raylign.records.suite_changes import read_changes, sentences
from raylign.records.summary import RunSummary
from raylign.records.summary import read_summary as read
from raylign.records.summary import write_summary as write

SUMMARY = RunSummary(algorithm="sft", policy_start="m", steps=1, seconds_total=1.0)


def run_config(model: Path, *settings: str, algorithm: str = "sft") -> RunConfig:
    return compose(
        [f"+experiment={algorithm}_tiny_cpu", f"policy.model={model}", f"data.train={model}/config.json", *settings]
    ).config


def own_suite(folder: Path, name: str = "mine") -> Path:
    (folder / "rows.jsonl").write_text('{"prompt": "Say a."}\n')
    (folder / f"{name}.yaml").write_text("prompts: rows.jsonl\nreward: {rules: [{rule: finished}]}\n")
    return folder / f"{name}.yaml"


def result(suite: str, right: dict[str, int], of: int) -> SuiteResult:
    """`right[topic]` of `of` prompts of each topic are right."""
    rows = [
        PromptScore(f"{topic}{i}", "q", ("a",), (float(i < count),), slices=(f"topic: {topic}",))
        for topic, count in right.items()
        for i in range(of)
    ]
    return SuiteResult(suite, "", "m", "w", suite, "share right", Range(0, 1), 1.0, tuple(rows))


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    """A run that has exported two steps, of which it chose the first."""
    paths = RunPaths(tmp_path / "runs" / "sft")
    for step in (1, 2):
        (paths.export / f"step-{step}").mkdir(parents=True)
        (paths.export / f"step-{step}" / "config.json").write_text("{}")
    (paths.export / "BEST").write_text("step-1\n")
    (paths.path / "eval").mkdir()
    (paths.path / "resolved.yaml").touch()
    paths.metrics.write_text('{"step": 1, "train/loss": 1.0}\n')
    return paths


def test_suites_that_cannot_be_asked_are_refused_together(tmp_path: Path, tiny_model_dir: Path):
    mine, other = own_suite(tmp_path), tmp_path / "other"
    other.mkdir()
    named = f"evaluation.suites=[arithmetics,{mine},{own_suite(other)}]"

    with pytest.raises(ConfigError) as caught:
        config = run_config(tiny_model_dir, named, algorithm="rm")
        refuse_impossible(config, needs(config))

    told = "\n".join(caught.value.problems)
    assert "did you mean arithmetic?" in told and "are both called mine" in told and "raylign audit" in told


def test_what_own_suites_read_belongs_to_the_run(tmp_path: Path, tiny_model_dir: Path):
    found = suite_files(run_config(tiny_model_dir, f"evaluation.suites=[facts,{own_suite(tmp_path)}]"))

    assert found == {
        "evaluation.suites.mine": tmp_path / "mine.yaml", "evaluation.suites.mine.prompts": tmp_path / "rows.jsonl",
    }  # fmt: skip


def test_a_loss_on_one_suite_and_one_slice_is_said_and_hidden_in_no_mean(
    run: RunPaths, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    asked, even = [], {"a": 30, "b": 30}
    planted = {
        str(tiny_model_dir): [result("facts", {"a": 10, "b": 40}, 40), result("format", even, 40)],
        str(run.export / "step-1"): [result("facts", {"a": 40, "b": 10}, 40), result("format", {"a": 5, "b": 5}, 40)],
    }

    def evaluate(model: str, suites: list[str], settings: commands.EvalSettings, tell: object) -> list[SuiteResult]:
        asked.append((model, suites, settings.results))
        return planted[model]

    monkeypatch.setattr(commands, "evaluate", evaluate)
    config = run_config(tiny_model_dir, "evaluation.suites=[facts,format]", f"run_root={run.path.parent}")
    before = answered_before(config, print)
    summary = with_suites(SUMMARY, config, run, before, print)

    results = run.path.parent.parent / "eval-results"
    assert asked == [(model, ["facts", "format"], results) for model in planted]
    changes = read_changes(run.suites)
    assert [(one.name, one.worse, one.better) for one in changes] == [
        ("facts", False, False), ("format", True, False), ("facts, topic: a", False, True),
        ("facts, topic: b", True, False), ("format, topic: a", True, False), ("format, topic: b", True, False),
    ]  # fmt: skip
    assert (changes[1].before, changes[1].after, changes[1].gain) == (0.75, 0.125, -0.625)
    told = list(sentences(changes))
    assert told[-1] == "suites: worse than before on format, facts, topic: b, format, topic: a, format, topic: b"
    write(run.summary, summary)
    found = read(run.summary).extra
    assert (found["suite_format_before"], found["suite_format_after"], found["suites_worse"]) == (0.75, 0.125, 1)
    assert found["suite_slices_worse"] == 3 and found["suite_format_gain_high"] < 0 and found["suite_format_p"] < 0.01
    assert {row.name for row in figures_of(summary)} >= {"suite facts", "suite format"}
    verdict = judge(read_run(run.path))
    assert sum(remark.text.startswith("Worse than before on") for remark in verdict.remarks) == 4
    assert [term for term, _ in verdict.details if term.startswith("Suite")] == ["Suites worse"]


def test_a_run_that_changed_nothing_says_what_it_cannot_exclude(
    run: RunPaths, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    same = [result("facts", {"a": 10, "b": 20}, 40)]
    monkeypatch.setattr(commands, "evaluate", lambda *given: same)
    config = run_config(tiny_model_dir, "evaluation.suites=[facts]", f"run_root={run.path.parent}")
    with_suites(SUMMARY, config, run, answered_before(config, print), print)

    (last,) = sentences(read_changes(run.suites))
    assert last == "suites: none is worse than before; not excluded is a loss on facts of up to 0.046"
    assert json.loads(run.suites.read_text())[0]["p"] == 1.0


def test_a_run_without_suites_asks_nobody(run: RunPaths, tiny_model_dir: Path):
    config = run_config(tiny_model_dir)

    assert with_suites(SUMMARY, config, run, answered_before(config, print), print) is SUMMARY
    assert not run.suites.exists() and list(sentences(read_changes(run.suites))) == []
