"""`raylign eval` and `raylign gate`: models evaluated on suites, compared on the same prompts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raylign.app.commands.answer import NOTE, RESULT, AnswerJob
from raylign.app.commands.serve import causal_export
from raylign.cluster.rank import last_error
from raylign.cluster.runtime_env import RoleEnv
from raylign.conf.errors import RunFailed, UserError
from raylign.conf.schema import Device, Precision
from raylign.evals.results import ResultStore, SuiteResult, paired
from raylign.evals.statistics import Figure, Line, difference, figure, holm, p_value
from raylign.evals.suites import open_suite

STOP_S = 60.0
"""What an engine may take to end after its last answer."""


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
    folder = causal_export(model, settings.run_root)
    device = _device()
    usual = Precision.float32 if device is Device.cpu else Precision.bfloat16
    threads = max(1, len(os.sched_getaffinity(0)))
    job = AnswerJob(
        model=str(folder),
        name=model,
        suites=tuple(suites),
        results=str(settings.results.expanduser().absolute()),
        precision=(settings.precision or usual).value,
        threads=threads,
        device=device.value,
        again=settings.again,
    )
    keys = _keys(job, RoleEnv(device, threads, keeps_pages=True).variables(), settings.deadline_s, tell)
    store = ResultStore(Path(job.results))
    found = [store.find(key) for key in keys]
    return [result for result in found if result is not None]


def compare(
    candidates: Sequence[SuiteResult], currents: Sequence[SuiteResult] | None, *, confidence: float = 0.95
) -> list[Line]:
    """The table of one model, or of two on the same prompts; `p` by Holm over the suites."""
    if currents is None:
        return [_line(one, None, None, confidence) for one in candidates]
    pairs = [paired(candidate, current) for candidate, current in zip(candidates, currents, strict=True)]
    corrected = holm([p_value(new, old) for new, old in pairs])
    return [
        _line(one, difference(new, old, one.possible, confidence=confidence), p, confidence)
        for one, (new, old), p in zip(candidates, pairs, corrected, strict=True)
    ]


def _line(one: SuiteResult, gain: Figure | None, p: float | None, confidence: float) -> Line:
    found = figure(one.scores(), one.possible, confidence=confidence)
    return Line(one.suite, one.unit, one.failed, found, gain, p)


def _keys(job: AnswerJob, variables: dict[str, str], deadline_s: float, tell: Callable[[str], None]) -> list[str]:
    """Run the job in a process of its own, whose log lies beside the results; the keys of its results."""
    folder = Path(job.results)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "answer.log"
    keys = []
    with log.open("w", encoding="utf-8") as noise:
        process = subprocess.Popen(
            [sys.executable, "-m", "raylign.app.commands.answer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
            env={**os.environ, **variables},
        )
        late = threading.Timer(deadline_s, process.kill)
        late.start()
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(job.to_json())
            process.stdin.close()
            for line in process.stdout:
                if line.startswith(NOTE):
                    tell(line.removeprefix(NOTE).rstrip("\n"))
                elif line.startswith(RESULT):
                    keys.append(line.removeprefix(RESULT).strip())
            code = process.wait(timeout=STOP_S)
        finally:
            fired = late.finished.is_set()
            late.cancel()
            process.kill()
    if code == 0:
        return keys
    if code == -signal.SIGKILL and fired:
        raise RunFailed(f"{job.name}: the suites were not answered within {deadline_s:g} s (--deadline).")
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if code == UserError.exit_code:
        raise UserError(lines[-1] if lines else f"{job.name}: refused.")
    raise RunFailed(f"{job.name}: {last_error(log) or f'its process ended with exit code {code}'}; see {log}")


def _device() -> Device:
    import torch

    return Device.cuda if torch.cuda.is_available() else Device.cpu
