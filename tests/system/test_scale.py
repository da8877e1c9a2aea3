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
from raylign.cluster.listeners import listeners
from raylign.cluster.stacks import processes_of
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths
from raylign.records.samples import read_samples

from tests.system.tiny_runs import run_settings

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]
RAYLIGN = Path(sys.executable).with_name("raylign")
DEADLINE_S = 900
SECRET = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c"
SECRET_VARIABLES = ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_DATABASE_PASSWORD")


def workers(run: RunPaths) -> float:
    return read_history(run.metrics).latest().get("rollout/workers", 0.0)


def replicas(run: RunPaths) -> float:
    return read_history(run.metrics).latest().get("reward/replicas", 0.0)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-6000:]
        time.sleep(0.5)


def processes(marked: Path) -> dict[int, bytes]:
    """Every process of the run that was started with RAYLIGN_TEST_RUN=`marked`, with its command line."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"RAYLIGN_TEST_RUN={marked}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_bytes()
        except OSError:
            continue
    return found


def engine_actors(marked: Path) -> list[int]:
    return [pid for pid, command in processes(marked).items() if command.startswith(b"ray::RolloutWorker")]


def _nobody_outside_reaches_it(marked: Path) -> None:
    """S01, with every role up: what the kernel lists is on loopback."""
    found = listeners(set(processes(marked)))
    assert {"gcs_server", "raylet"} <= {one.process for one in found} and len(found) >= 10, found
    assert [one for one in found if not one.on_loopback] == []


def _no_file_has_a_secret(run: RunPaths, marked: Path, log: Path) -> None:
    """S11: of the run folder, W&B's files in it, the console and Ray's own logs."""
    variable = b"RAY_AUTH_TOKEN_PATH="
    names = {
        value.removeprefix(variable)
        for pid in engine_actors(marked)
        for value in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if value.startswith(variable)
    }
    [token] = names
    folders = (run.path, Path(os.fsdecode(token)).parent / "r")
    files = [log, *(path for folder in folders for path in folder.rglob("*") if path.is_file())]
    assert any(path.suffix == ".wandb" for path in files) and any(path.name == "raylet.out" for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def _a_stopped_rank_is_found(run: RunPaths, process: subprocess.Popen[bytes], log: Path) -> None:
    """No step ends: the stacks of every role are in the run folder, and the one that stands still is named."""
    [rank] = [pid for pid, path in processes_of(run.logs).items() if path.stem == "policy-0"]
    os.kill(rank, signal.SIGSTOP)
    try:
        wait_for(lambda: "policy-0, process" in log.read_text() and "(stopped)" in log.read_text(), process, log)
    finally:
        os.kill(rank, signal.SIGCONT)
    written = {path.name for path in run.path.glob("stacks/*/*.txt")}
    assert {"driver.txt", "policy-0.txt", "reward-0.txt", "rollout-0.txt"} <= written, written
    assert any("run_until_complete" in path.read_text() for path in run.path.glob("stacks/*/driver.txt"))


def test_one_to_four_to_two_then_one_dies(tiny_model_dir: Path, questions: Path, tmp_path: Path) -> None:
    settings = [*run_settings("grpo", tiny_model_dir, questions, tmp_path), "num_steps=100000"]
    settings += [
        "rollout.num_workers=1",
        "policy.optim.lr=1e-5",
        "name=elastic",
        "cluster.stall_s=20",
        "tracking.wandb=offline",
    ]
    run, log = RunPaths(tmp_path / "elastic"), tmp_path / "log"
    environment = {**os.environ, "RAYLIGN_TEST_RUN": str(tmp_path), **dict.fromkeys(SECRET_VARIABLES, SECRET)}
    with log.open("wb") as file:
        process = subprocess.Popen([RAYLIGN, "train", *settings], stdout=file, stderr=file, env=environment)
    try:
        wait_for(lambda: workers(run) == 1, process, log)
        for wanted in (4, 2):
            order = [f"rollout={wanted}", f"reward={wanted // 2}"]
            subprocess.run([RAYLIGN, "scale", str(run.path), *order], check=True, timeout=60)
            wait_for(lambda wanted=wanted: (workers(run), replicas(run)) == (wanted, wanted // 2), process, log)
        _nobody_outside_reaches_it(tmp_path)
        _no_file_has_a_secret(run, tmp_path, log)
        wait_for(lambda: len(engine_actors(tmp_path)) == 2, process, log)  # those that leave have ended
        os.kill(max(engine_actors(tmp_path)), signal.SIGKILL)
        wait_for(lambda: workers(run) == 1, process, log)
        wait_for(lambda: workers(run) == 2, process, log)
        _a_stopped_rank_is_found(run, process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 76, log.read_text()[-6000:]
    finally:
        process.kill()
    picture = tmp_path / "fleet.svg"
    plot = [sys.executable, ROOT / "benchmarks/fleet_plot.py", run.path, picture]
    subprocess.run(plot, check=True, timeout=60)
    assert picture.read_text().count("<polyline") == 6

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
