"""Stacks of processes that make no progress: one waits, one is stopped, one has no handler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from raylign.cluster.stacks import StallWatch, dump_stacks

ROLE = """
import sys, time
from pathlib import Path
from raylign.cluster.rank import keep_log
log = Path(sys.argv[1])
keep_log(log)
def waits_for_a_reply_that_never_comes():
    log.with_suffix(".up").touch()
    time.sleep(600)
waits_for_a_reply_that_never_comes()
"""
NO_HANDLER = "import sys, time; open(sys.argv[1], 'w'); time.sleep(600)"


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Path]:
    started = [
        subprocess.Popen([sys.executable, "-c", ROLE, str(tmp_path / f"{n}.log")]) for n in ("policy-0", "policy-1")
    ]
    with (tmp_path / "rollout-0.log").open("w") as log:
        started.append(
            subprocess.Popen([sys.executable, "-c", NO_HANDLER, str(tmp_path / "rollout-0.up")], stdout=log, stderr=log)
        )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.up"))) < 3:
        assert time.monotonic() < deadline, "the roles did not start"
        time.sleep(0.05)
    os.kill(started[1].pid, signal.SIGSTOP)
    try:
        yield tmp_path
        assert [process.poll() for process in started] == [None] * 3, "asking for stacks ended a process"
    finally:
        for process in started:
            process.kill()
            process.wait(10)


def test_every_role_is_in_the_folder_and_a_stopped_one_is_named(logs: Path) -> None:
    told: list[float] = []

    def dump(silent: float) -> None:
        told.append(silent)
        lines.extend(dump_stacks(logs, logs / "stacks", answer_s=1.0))

    lines: list[str] = []
    with StallWatch(0.2, dump) as watch:
        deadline = time.monotonic() + 30
        while not lines and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        assert len(told) == 1 and told[0] >= 0.2, "one stall is dumped once"
        watch.beat()
    written = {path.name: path.read_text() for path in (logs / "stacks").iterdir()}
    assert "waits_for_a_reply_that_never_comes" in written["policy-0.txt"]
    assert "no thread answered" in written["policy-1.txt"] and "no thread answered" in written["rollout-0.txt"]
    [stopped] = [line for line in lines if line.startswith("policy-1")]
    assert "T (stopped)" in stopped
    assert len(lines) == 3
