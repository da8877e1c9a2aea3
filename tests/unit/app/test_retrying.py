"""A driver that dies is started again, under one name, and what was asked to stop is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from raylign.app.commands.retrying import keep_training
from raylign.records.run_folder import RunPaths

SCRIPTED = """
import os, sys
log, *arguments = sys.argv[1:]
with open(log, "a") as file:
    file.write(" ".join(arguments) + "\\n")
code = int(open(log + ".codes").read().split()[sum(1 for _ in open(log)) - 1])
os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
"""


def play(
    codes: str, tmp_path: Path, *extra: str, name: str = "mine", retries: int = 2
) -> tuple[int, list[list[str]], list[str]]:
    """Exit code, the arguments of every start, and what was said. The n-th start ends with the n-th of `codes`."""
    log, said = tmp_path / "log", []
    (tmp_path / "log.codes").write_text(codes)
    given = ["+experiment=sft_tiny_cpu", f"run_root={tmp_path}", *extra]
    command = [sys.executable, "-c", SCRIPTED, str(log)]
    code = keep_training(given, RunPaths(tmp_path / name), retries, said.append, command, pause_s=0.0)
    return code, [line.split() for line in log.read_text().splitlines()], said


@pytest.mark.parametrize(
    ("codes", "starts", "ends"),
    [
        ("0", 1, 0), ("-9 0", 2, 0), ("1 75 0", 3, 0), ("75 75 75 0", 3, 75), ("-9 -9 -9", 3, 75),
        ("2", 1, 2), ("70", 1, 70), ("76", 1, 76),
    ],
)  # fmt: skip
def test_only_what_may_do_better_is_started_again(codes: str, starts: int, ends: int, tmp_path: Path) -> None:
    code, seen, said = play(codes, tmp_path)
    assert (code, len(seen), len(said)) == (ends, starts, starts - 1)
    assert all("name=mine" in start for start in seen), "each start would be another run"


@pytest.mark.slow
def test_the_first_start_may_come_from_elsewhere_and_the_next_goes_on_from_the_runs_own(tmp_path: Path) -> None:
    _, seen, _ = play("-9 -9 0", tmp_path, "checkpoint.resume=/elsewhere/step-000004")
    assert all("checkpoint.resume=/elsewhere/step-000004" in start for start in seen), "there was nothing of its own"
    (tmp_path / "mine" / "checkpoints" / "step-000002").mkdir(parents=True)
    (tmp_path / "log").unlink()
    _, seen, _ = play("-9 0", tmp_path, "checkpoint.resume=/elsewhere/step-000004")
    assert "checkpoint.resume=auto" in seen[1] and "checkpoint.resume=/elsewhere/step-000004" not in seen[1]
    (tmp_path / "log").unlink()
    _, seen, _ = play("-9 0", tmp_path, "checkpoint.resume=none", name="new")
    assert "checkpoint.resume=none" in seen[0] and "checkpoint.resume=auto" in seen[1]


SUPERVISED = """
import sys
from raylign.app.commands.retrying import keep_training
from pathlib import Path
from raylign.records.run_folder import RunPaths
child = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(76)); open(sys.argv[1], 'w'); time.sleep(60)"
command = [sys.executable, "-c", child, sys.argv[1] + "/child"]
sys.exit(keep_training([], RunPaths(Path(sys.argv[1])), 3, print, command, 0.0))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stop_is_passed_on_and_a_dead_supervisor_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SUPERVISED, str(tmp_path)], env=dict(os.environ))
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "child").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(number)
        assert process.wait(30) == (76 if number is signal.SIGTERM else -signal.SIGKILL)
        while any(Path(f"/proc/{child}").exists() for child in children):
            assert time.monotonic() < deadline + 30, "the driver outlives its supervisor"
            time.sleep(0.05)
    finally:
        process.kill()
