"""The process in which one model answers suites: its engine is started once, for every job it is given."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from raylign.app.commands.answer_job import DONE, NOTE, RESULT, AnswerJob
from raylign.cluster.rank import last_error
from raylign.conf.errors import RunFailed, UserError

COMMAND = (sys.executable, "-m", "raylign.app.commands.answer")

STOP_S = 60.0
"""What an engine may take to end after its last answer."""


class AnswerProcess:
    """Starts with the first job and ends with the context. All jobs are of one model."""

    def __init__(self, log: Path, variables: Mapping[str, str]) -> None:
        """`log`: where everything goes that the engine says; `variables`: more of the environment."""
        self._log, self._variables = log, variables
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> AnswerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The engine may end in order; after an error, or STOP_S, it is killed."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            if kind is None:
                self._process.wait(timeout=STOP_S)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            pass  # every answer is kept already
        finally:
            self._process.kill()
            self._process.wait(timeout=STOP_S)

    def keys(self, job: AnswerJob, deadline_s: float, tell: Callable[[str], None]) -> list[str]:
        """Keys of the job's results. Raises UserError for what is refused, RunFailed when it breaks or is late."""
        process = self._process = self._process or self._started()
        late = threading.Timer(deadline_s, process.kill)
        late.start()
        try:
            found = _answered(process, job, tell)
        finally:
            fired = late.finished.is_set()
            late.cancel()
        if found is not None:
            return found
        code = process.wait(timeout=STOP_S)
        if code == -signal.SIGKILL and fired:
            raise RunFailed(
                f"{job.name}: the suites were not answered within {deadline_s:g} s; give them longer by "
                "`raylign eval --deadline`, whose answers are used again."
            )
        text = self._log.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        if code == UserError.exit_code:
            raise UserError(lines[-1] if lines else f"{job.name}: refused.")
        why = last_error(self._log) or f"its process ended with exit code {code}"
        raise RunFailed(f"{job.name}: {why}; see {self._log}")

    def _started(self) -> subprocess.Popen[str]:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w", encoding="utf-8") as noise:
            return subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=noise,
                text=True,
                env={**os.environ, **self._variables},
            )


def _answered(process: subprocess.Popen[str], job: AnswerJob, tell: Callable[[str], None]) -> list[str] | None:
    """The keys; None when the process ends before it is done."""
    assert process.stdin is not None and process.stdout is not None
    keys: list[str] = []
    try:
        process.stdin.write(job.to_json() + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return None
    for line in process.stdout:
        if line.startswith(NOTE):
            tell(line.removeprefix(NOTE).rstrip("\n"))
        elif line.startswith(RESULT):
            keys.append(line.removeprefix(RESULT).strip())
        elif line.startswith(DONE):
            return keys
    return None
