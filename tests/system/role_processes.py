"""Finds the process of one role of one run, by the log that the process writes into, and ends or stops it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths


def role_process(run: RunPaths, log: str) -> int | None:
    """Pid of the Ray actor that writes `logs/<log>.log`; None when there is none, or it is a zombie."""
    wanted = str(run.logs / f"{log}.log")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "fd" / "2") == wanted and (process / "cmdline").read_bytes().startswith(b"ray::"):
                return int(process.name)
        except OSError:
            continue
    return None


class Faults:
    """In a thread: when the run has told step `after`, `signal_number` for the process of `log`, and once more for each
    further step named."""

    def __init__(self, run: RunPaths, log: str, signal_number: signal.Signals, after: tuple[int, ...]) -> None:
        self.hit: list[int] = []  # pids
        self._run, self._log, self._signal, self._after = run, log, signal_number, after
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)

    def __enter__(self) -> Faults:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)

    def _play(self) -> None:
        for step in self._after:
            if not self._wait(lambda step=step: newest(self._run) >= step):  # type: ignore[misc]
                return
            if not self._wait(lambda: role_process(self._run, self._log) not in (None, *self.hit)):
                return
            pid = role_process(self._run, self._log)
            assert pid is not None
            os.kill(pid, self._signal)
            self.hit.append(pid)

    def _wait(self, what: Callable[[], bool]) -> bool:
        while not self._ended.is_set():
            if what():
                return True
            time.sleep(0.02)
        return False


def newest(run: RunPaths) -> int:
    rows = read_history(run.metrics).rows
    return rows[-1].step if rows else -1
