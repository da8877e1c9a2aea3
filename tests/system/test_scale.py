"""A live run grows from one engine to four, shrinks to two, loses one and gets another, and counts right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths
from raylign.records.samples import read_samples

from tests.system.tiny_runs import run_settings

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(3600)]

RAYLIGN = Path(sys.executable).with_name("raylign")
DEADLINE_S = 900


def workers(run: RunPaths) -> float:
    return read_history(run.metrics).latest().get("rollout/workers", 0.0)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-6000:]
        time.sleep(0.5)


def engine_actors(driver: int) -> list[int]:
    """Processes of our rollout workers on this machine that belong to the driver's cluster."""
    token = next(
        value
        for value in [*Path(f"/proc/{driver}/environ").read_bytes().split(b"\0"), b""]
        if value.startswith(b"RAYLIGN_TEST_RUN=") or not value
    )
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mine = token in (process / "environ").read_bytes().split(b"\0")
            name = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if mine and name.startswith(b"ray::RolloutWorker"):
            found.append(int(process.name))
    return found


def test_one_to_four_to_two_then_one_dies(tiny_model_dir: Path, questions: Path, tmp_path: Path) -> None:
    settings = [*run_settings("grpo", tiny_model_dir, questions, tmp_path), "num_steps=100000"]
    settings += ["rollout.num_workers=1", "policy.optim.lr=1e-5", "name=elastic"]
    run, log = RunPaths(tmp_path / "elastic"), tmp_path / "log"
    environment = {**os.environ, "RAYLIGN_TEST_RUN": str(tmp_path)}
    with log.open("wb") as file:
        process = subprocess.Popen([RAYLIGN, "train", *settings], stdout=file, stderr=file, env=environment)
    try:
        wait_for(lambda: workers(run) == 1, process, log)
        for wanted in (4, 2):
            subprocess.run([RAYLIGN, "scale", str(run.path), "--rollout", str(wanted)], check=True, timeout=60)
            wait_for(lambda wanted=wanted: workers(run) == wanted, process, log)
        before = set(engine_actors(process.pid))
        assert len(before) >= 2, "the test does not see the engines"
        os.kill(max(before), signal.SIGKILL)
        wait_for(lambda: workers(run) == 1, process, log)
        wait_for(lambda: workers(run) == 2, process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 76, log.read_text()[-6000:]
    finally:
        process.kill()

    rows = read_history(run.metrics).rows
    steps = [row.step for row in rows]
    assert steps == list(range(1, len(steps) + 1)), "a step is missing or twice"
    assert rows[-1].values["ledger/trained"] == 64 * len(steps) and rows[-1].values["ledger/failed"] == 0
    for step in steps:
        samples = read_samples(run.samples_file(step))
        assert len({row.key for row in samples}) == len(samples) == 64
        assert {row.min_policy_version for row in samples} == {step - 1}, "sampled by other weights than the step's"
    said = log.read_text() + "".join(path.read_text() for path in run.logs.glob("*.log"))
    assert said.count("is out of the pool") <= 1, "a death is said at every step"
