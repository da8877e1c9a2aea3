"""`--retries N`: the driver in a process of its own, started again when it dies, resuming from its last checkpoint."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from raylign.conf.compose import Composed
from raylign.conf.derive import run_name
from raylign.conf.errors import Stopped
from raylign.records.run_folder import RunPaths

UNEXPECTED = 1
"""Exit code of a Python process that ended with a traceback."""

_PR_SET_PDEATHSIG = 1
_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0
_LOOK_S = 3600.0


def keep_training(
    given: Sequence[str],
    paths: RunPaths,
    retries: int,
    tell: Callable[[str], object],
    command: Sequence[str] = (sys.executable, "-m", "raylign", "train"),
    pause_s: float = _PAUSE_S,
) -> int:
    """Run `command` with `given`, whose run lies in `paths`, and at most `retries` times again; the last exit code.

    Started again is what was killed, ended with a traceback, or stopped resumable (75). What is done, refused, broken
    or was asked to stop is not.
    """
    arguments = _pinned(given, paths)
    for attempt in range(retries + 1):
        code, asked = _once([*command, *arguments])
        if asked or attempt == retries or not may_go_on(code):
            break
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        tell(f"the run {how}; it is started again ({attempt + 1} of {retries})")
        time.sleep(min(_LONGEST_PAUSE_S, pause_s * 2**attempt))
        arguments = _resuming(arguments, paths)
    return code if code >= 0 else Stopped.exit_code


def may_go_on(code: int) -> bool:
    """Whether a run that ended with `code` may do better when it is started again."""
    return code < 0 or code in (UNEXPECTED, Stopped.exit_code)


def run_paths(composed: Composed) -> RunPaths:
    """Where the run will lie: `name=auto` is settled here."""
    config = composed.config
    name = run_name(config, datetime.now(UTC).astimezone())
    return RunPaths(Path(config.run_root).expanduser().resolve() / name)


def _pinned(given: Sequence[str], paths: RunPaths) -> list[str]:
    """With the name that `auto` becomes now: the next start must find the same folder."""
    return [*(one for one in given if not one.startswith("name=")), f"name={paths.path.name}"]


def _resuming(arguments: Sequence[str], paths: RunPaths) -> list[str]:
    """Not from where the first start resumed, once the run has a checkpoint of its own."""
    resume = next((one.partition("=")[2] for one in arguments if one.startswith("checkpoint.resume=")), "auto")
    if resume not in ("auto", "none") and not any(paths.checkpoints.glob("step-*")):
        return list(arguments)
    return [*(one for one in arguments if not one.startswith("checkpoint.resume=")), "checkpoint.resume=auto"]


def _once(command: Sequence[str]) -> tuple[int, bool]:
    """Exit code, and whether somebody asked for the stop. SIGTERM and Ctrl-C are passed on."""
    child = subprocess.Popen(command, preexec_fn=_end_with_parent, env=_environment(os.environ))
    with _passed_on(child) as asked:
        while True:  # a run may take weeks
            with suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=_LOOK_S), bool(asked)


@contextmanager
def _passed_on(child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    asked: list[int] = []

    def forward(number: int, _: object) -> None:
        asked.append(number)
        if child.poll() is None:
            child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_parent() -> None:
    """In the child: it saves and ends when this process is killed. Linux only; elsewhere it runs on by itself."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Lines arrive at once, also in a job's log."""
    return {**environ, "PYTHONUNBUFFERED": "1"}
