"""Suites that must not get worse: refused before anything starts, answered before the first step and after the last.

What answers and compares them is imported where a run names some: every other run would pay a second for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from raylign.app.launch.functions import function_files
from raylign.app.launch.judges import rubric_files
from raylign.app.launch.stopping import stoppable
from raylign.conf.errors import RaylignError
from raylign.conf.model_folder import model_folder
from raylign.conf.schema import RunConfig
from raylign.records.run_folder import RunPaths
from raylign.records.suite_changes import summary_figures, write_changes
from raylign.records.summary import RunSummary
from raylign.trainer.algorithms import algorithm_of
from raylign.trainer.algorithms.base import ModelKind, OfflineAlgorithm, Role

if TYPE_CHECKING:
    from raylign.evals.results import SuiteResult

Tell = Callable[[str], None]


def suite_problems(config: RunConfig) -> Iterator[str]:
    """Suites that cannot be asked, as sentences."""
    if not config.evaluation.suites:
        return
    from raylign.evals.suites import open_suite

    names: dict[str, str] = {}
    for named in config.evaluation.suites:
        try:
            name = open_suite(named).name
        except RaylignError as error:
            yield from (f"evaluation.suites: {problem}" for problem in error.problems)
            continue
        if name in names:
            yield f"evaluation.suites: {names[name]} and {named} are both called {name}; rename one of them."
        names[name] = named
    if not _answers(config):
        yield (
            f"evaluation.suites: algorithm={config.algorithm.name} trains a reward model, which answers nothing; leave "
            "it out, and use `raylign audit` after the run."
        )


def suite_files(config: RunConfig) -> dict[str, Path]:
    """What own suites read, by key, of what is here."""
    found: dict[str, Path] = {}
    for named in config.evaluation.suites:
        if not Path(named).suffix or not Path(named).expanduser().is_file():
            continue  # a shipped one, or a file of the machine where the run starts
        from raylign.evals.suites import open_suite

        suite = open_suite(named)
        key, reward = f"evaluation.suites.{suite.name}", suite.config.reward
        read = {"prompts": suite.config.prompts, "model": reward.model, "tasks": suite.config.harness.include_path}
        found[key] = suite.path
        found |= {f"{key}.{what}": Path(path) for what, path in read.items() if path and Path(path).exists()}
        found |= {f"{key}.{name}": path for name, path in {**function_files(reward), **rubric_files(reward)}.items()}
    return found


def answered_before(config: RunConfig, tell: Tell) -> list[SuiteResult]:
    """The start model on the run's suites; none where it names none. Raises what `evaluate` raises, and Stopped."""
    return _answered(config.policy.model, config, tell) if config.evaluation.suites else []


def with_suites(
    summary: RunSummary, config: RunConfig, run: RunPaths, before: Sequence[SuiteResult], tell: Tell
) -> RunSummary:
    """The trained model on the same suites: the changes go to the run's folder, and their figures to the summary."""
    if not before:
        return summary
    from raylign.evals.changes import suite_changes

    after = _answered(model_folder(str(run.path)).path, config, tell)
    changes = suite_changes(after, before)
    write_changes(run.suites, changes)
    return replace(summary, extra={**summary.extra, **summary_figures(changes)})


def _answered(model: str, config: RunConfig, tell: Tell) -> list[SuiteResult]:
    from raylign.app.commands.evaluate import EvalSettings, evaluate

    results = config.evaluation.suite_results or str(Path(config.run_root).absolute().parent / "eval-results")
    settings = EvalSettings(Path(results), Path(config.run_root))
    with stoppable():
        return evaluate(model, config.evaluation.suites, settings, tell)


def _answers(config: RunConfig) -> bool:
    algorithm = algorithm_of(config.algorithm)
    return Role.ROLLOUT in algorithm.roles or cast("OfflineAlgorithm", algorithm).needs.model is not ModelKind.SCALAR
