"""Held-out metrics of a user's own: read where the run is started, each called in a process of its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raylign.app.launch.components import components
from raylign.conf.held_out import held_out_sets
from raylign.conf.schema import EvalConfig, HeldOutMetricConfig, RunConfig
from raylign.data.types import Completion, Prompt
from raylign.reward.function_process import FunctionProcess
from raylign.reward.functions import FunctionError, FunctionSource, read_source, sent_files
from raylign.reward.samples import NotScored
from raylign.reward.scorer import sample_of

FAILED = "metrics_failed"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FIGURES = {"reward", "fluency", "response_length", "truncated_ratio", "gold_score", FAILED}


def metric_problems(config: RunConfig, *, online: bool) -> list[str]:
    """A sentence for each metric that cannot be used; functions are imported once to see."""
    given = config.evaluation.metrics
    if given and not online:
        return ["evaluation.metrics: offline runs generate no answers, so there is nothing to measure; leave it out."]
    if given and not held_out_sets(config.data.eval):
        return ["evaluation.metrics: data.eval is empty, so there is nothing to measure; give held-out prompts."]
    taken = {*_FIGURES, *components(config.reward)}
    problems = []
    for number, metric in enumerate(given):
        name = metric_name(metric)
        if not _NAME.fullmatch(name) or name.startswith("pass@"):
            problems.append(f"evaluation.metrics: {metric.path} cannot be called {name!r}; use A-Z a-z 0-9 . _ -.")
        elif name in taken:
            problems.append(f"evaluation.metrics: {name} is taken; give {metric.path} another name, as name: {name}_2.")
        taken.add(name)
        try:
            _source(metric)
        except FunctionError as error:
            problems.append(f"evaluation.metrics[{number}].path={metric.path}: {error}.")
    return problems


def metric_name(given: HeldOutMetricConfig) -> str:
    """As given, else the function's."""
    return given.name or given.path.rpartition(":")[2]


def metric_files(config: EvalConfig) -> dict[str, Path]:
    """Every file of theirs, by key, for the manifest."""
    return {f"evaluation.metrics.{metric_name(m)}/{f.name}": f for m in config.metrics for f in sent_files(m.path)}


def _source(given: HeldOutMetricConfig) -> FunctionSource:
    return read_source(given.path, style="trl", start_timeout_s=given.start_timeout_s)


@dataclass(frozen=True, slots=True)
class OwnMetrics:
    """A loops.evaluate.SetMetrics. `tell` is given a sentence for each that has no number."""

    processes: Mapping[str, tuple[str, FunctionProcess]]  # name -> path as given, and where it runs
    tell: Callable[[str], None]

    @classmethod
    def start(cls, config: EvalConfig, tell: Callable[[str], None]) -> OwnMetrics:
        """Raises FunctionError; `metric_problems` has seen them all work."""
        return cls(
            {
                metric_name(given): (
                    given.path,
                    FunctionProcess(
                        _source(given).code, timeout_s=given.timeout_s, start_timeout_s=given.start_timeout_s
                    ),
                )
                for given in config.metrics
            },
            tell,
        )

    async def measure(self, answers: Sequence[tuple[Prompt, Completion]]) -> Mapping[str, float]:
        """All of them side by side. A part of a mapping is `name/part`; `metrics_failed` counts those without."""
        samples = [sample_of(prompt, completion) for prompt, completion in answers]
        calls = [asyncio.to_thread(process.measure, samples) for _, process in self.processes.values()]
        found: dict[str, float] = {}
        failed = 0
        for (name, (path, _)), figures in zip(self.processes.items(), await asyncio.gather(*calls), strict=True):
            if isinstance(figures, NotScored):
                failed += 1
                self.tell(f"evaluation.metrics: {path} has no value at this evaluation: {figures.reason}")
            else:
                found |= {f"{name}/{part}" if part else name: value for part, value in figures.items()}
        return found | {FAILED: float(failed)}

    def stop(self) -> None:
        """End the processes."""
        for _, process in self.processes.values():
            process.stop()
