"""`raylign eval` and `raylign gate`: models evaluated on suites, compared on the same prompts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raylign.app.commands.answer_job import AnswerJob
from raylign.app.commands.answer_process import AnswerProcess
from raylign.app.commands.serve import causal_export
from raylign.cluster.runtime_env import RoleEnv
from raylign.conf.schema import Device, Precision
from raylign.evals.results import ResultStore, SuiteResult
from raylign.evals.suites import open_suite


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """How suites are run."""

    results: Path
    run_root: Path
    precision: Precision | None = None  # None: bfloat16 on a GPU, float32 on a CPU
    deadline_s: float = 7200.0  # of one model
    again: bool = False


def evaluate(
    model: str, suites: Sequence[str], settings: EvalSettings, tell: Callable[[str], None]
) -> list[SuiteResult]:
    """One result a suite, from the store where it has it. `tell`: where the work stands, a line at a time.

    Raises UserError for a model or a suite that is none, RunFailed when the model's process does not end in time.
    """
    for name in suites:
        open_suite(name)  # refused before a process is started
    with answer_process(settings) as process:
        return evaluate_in(process, model, suites, settings, tell)


def answer_process(settings: EvalSettings) -> AnswerProcess:
    """For one model; its log lies beside the results."""
    device = _device()
    variables = RoleEnv(device, _threads(), keeps_pages=True).variables()
    return AnswerProcess(settings.results.expanduser().absolute() / "answer.log", variables)


def evaluate_in(
    process: AnswerProcess,
    model: str,
    suites: Sequence[str],
    settings: EvalSettings,
    tell: Callable[[str], None],
    *,
    keeps_engine: bool = False,
) -> list[SuiteResult]:
    """The same in a process that may have answered before; `keeps_engine`: and will again."""
    device = _device()
    usual = Precision.float32 if device is Device.cpu else Precision.bfloat16
    job = AnswerJob(
        model=str(causal_export(model, settings.run_root)),
        name=model,
        suites=tuple(suites),
        results=str(settings.results.expanduser().absolute()),
        precision=(settings.precision or usual).value,
        threads=_threads(),
        device=device.value,
        again=settings.again,
        keeps_engine=keeps_engine,
    )
    keys = process.keys(job, settings.deadline_s, tell)
    store = ResultStore(Path(job.results))
    found = [store.find(key) for key in keys]
    return [result for result in found if result is not None]


def _threads() -> int:
    return max(1, len(os.sched_getaffinity(0)))


def _device() -> Device:
    import torch

    return Device.cuda if torch.cuda.is_available() else Device.cpu
