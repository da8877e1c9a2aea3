"""Where every process of a run's roles is when the run makes no progress: Python stacks, and what the kernel says.

A role's process has its log file as its output, which is how it is found: no list to keep, and the processes that an
engine starts are found with it. Asked by a signal, each writes the stacks of its threads itself, also when it waits in
native code. A process that is stopped or stuck in the kernel cannot answer; for it the kernel's word is the finding.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

ASK = signal.SIGUSR2
ANSWER_S = 3.0
"""How long a process may take to write its stacks."""

_BYTES_MOST = 1 << 20

logger = logging.getLogger(__name__)


def answer_when_asked(log: Path) -> None:
    """From now on this process, asked by ASK, appends the stacks of its threads to `<log>.stacks`."""
    file = open(log.with_suffix(".stacks"), "ab", buffering=0)  # noqa: SIM115  # open as long as the process lives
    faulthandler.register(ASK, file=file, all_threads=True)


def dump_stacks(logs: Path, into: Path, *, answer_s: float = ANSWER_S) -> list[str]:
    """Write one file a process of this machine whose output is a log in `logs`, and return a line for each.

    `into`: a folder, made if need be. Never raises for a process that ends meanwhile.
    """
    into.mkdir(parents=True, exist_ok=True)
    found = processes_of(logs)
    before = {log: _size(log.with_suffix(".stacks")) for log in set(found.values())}
    asked = {pid for pid in found if _catches(pid) and _send(pid)}
    deadline = time.monotonic() + answer_s
    while asked and time.monotonic() < deadline:
        time.sleep(0.1)
        if all(_size(log.with_suffix(".stacks")) > size for log, size in before.items()):
            time.sleep(0.2)  # the last one may still be writing
            break
    lines = []
    for pid, log in sorted(found.items()):
        state, where = _status(pid, "State"), _kernel(pid, "wchan")
        line = f"{log.stem}, process {pid}: {state or 'gone'}" + (f", in {where}" if where not in ("", "0") else "")
        lines.append(line)
        (into / f"{log.stem}-{pid}.txt").write_text(f"{line}\n{_kernel(pid, 'stack')}")
    for log, size in before.items():
        answer = _tail(log.with_suffix(".stacks"), size)
        missing = "no thread answered: the process is stopped, stuck in the kernel, or does not take the signal"
        (into / f"{log.stem}.txt").write_text(answer or f"{missing}\n")
    return lines


def dump_run(logs: Path, into: Path) -> list[str]:
    """As dump_stacks, with the threads of this process in `driver.txt`."""
    into.mkdir(parents=True, exist_ok=True)
    with (into / "driver.txt").open("wb") as file:
        faulthandler.dump_traceback(file, all_threads=True)
    return dump_stacks(logs, into)


class StallWatch:
    """Dumps the stacks once whenever `beat` was not called for `limit_s` seconds. A context manager."""

    def __init__(self, limit_s: float, dump: Callable[[float], None]) -> None:
        """`dump`: called in a thread of its own, with the seconds since the last beat."""
        self._limit_s, self._dump = limit_s, dump
        self._last, self._reported = time.monotonic(), False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall-watch", daemon=True)

    def beat(self) -> None:
        """There is progress."""
        self._last, self._reported = time.monotonic(), False

    def __enter__(self) -> Self:
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(self._limit_s)

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._limit_s / 4)):
            silent = time.monotonic() - self._last
            if silent > self._limit_s and not self._reported:
                self._reported = True
                try:
                    self._dump(silent)
                except OSError as error:  # a full disk must not hide the stall
                    logger.warning("the stacks could not be written: %s", error)


def processes_of(logs: Path) -> dict[int, Path]:
    """Process -> the log its output goes to."""
    folder, found = logs.resolve(), {}
    for entry in Path("/proc").glob("[0-9]*"):
        for descriptor in ("1", "2"):
            try:
                target = Path(os.readlink(entry / "fd" / descriptor))
            except OSError:
                continue
            if target.parent == folder and target.suffix == ".log":
                found[int(entry.name)] = target
    return found


def _catches(pid: int) -> bool:
    """Whether ASK has a handler there; without one it would end the process."""
    mask = _status(pid, "SigCgt")
    return bool(mask) and bool(int(mask, 16) >> (ASK - 1) & 1)


def _send(pid: int) -> bool:
    try:
        os.kill(pid, ASK)
    except OSError:
        return False
    return True


def _status(pid: int, field: str) -> str:
    match = re.search(rf"^{field}:\s*(.*)$", _kernel(pid, "status"), flags=re.MULTILINE)
    return match.group(1).strip() if match else ""


def _kernel(pid: int, name: str) -> str:
    """A file of /proc/<pid>; "" where it cannot be read (the kernel stack is root's)."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _tail(path: Path, start: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(_BYTES_MOST).decode(errors="replace")
    except OSError:
        return ""
