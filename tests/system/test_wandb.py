"""The real Weights & Biases, offline and broken: what it writes, that no secret is in it, and that it costs no step."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from raylign.conf.errors import Preempted, RunFailed, Stopped
from raylign.records.metrics_log import read_history
from raylign.records.wandb_sink import REOPENED

from tests.system.wandb_files import drawn, ending

pytestmark = pytest.mark.system

SECRET = "planted-secret-0123456789"

TRACKED_RUN = """
import logging, sys, time
from pathlib import Path
from raylign.conf.schema import *
from raylign.records.run_folder import RunPaths
from raylign.records.tracking import Tracker
from raylign.data.types import FinishReason, SampleKey
from raylign.records.samples import SampleRow
logging.basicConfig(stream=sys.stderr)
folder, mode, key = Path(sys.argv[1]), WandbMode[sys.argv[2]], sys.argv[3]
config = RunConfig(algorithm=AlgorithmConfig(name="ppo"))
config.data.train = "https://me:planted-secret-0123456789@files.example/x.jsonl"
config.policy.model = "planted-secret-0123456789"
environ = {"HF_TOKEN": "planted-secret-0123456789", "WANDB_API_KEY": key}
config.tracking = TrackingConfig(wandb=mode, wandb_samples=2)
tracker = Tracker(RunPaths(folder), config,
                  resumed_step=None, environ=environ)
row = SampleRow(SampleKey(0, "p", 0), "why?", "CANARYTEXT", (1,), (2, 3), (-.1, -.2), 1, 1, 1.0, 0.5, {"model": 0.5},
                None, 0.1, FinishReason.STOP)
begun = time.monotonic()
for step in range(1, 4):
    tracker.log(step, {"reward/mean": step / 3, "policy/kl": float("nan")})
    tracker.log_samples(step, [row] * 5)
sys.stderr.write(f"steps took {time.monotonic() - begun:.3f}\\n")
tracker.finish(exit_code=0, deadline_s=float(sys.argv[4]))
sys.stderr.write(f"where {tracker.where.get('Weights & Biases')}\\n")
"""


def run_apart(
    folder: Path, mode: str, *, key: str = "", deadline_s: float = 60.0, env: dict[str, str] | None = None
) -> tuple[str, float]:
    """A real wandb in a process of its own: its stderr and how long it lived, exit included."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", TRACKED_RUN, str(folder), mode, key, str(deadline_s)],
        capture_output=True,
        text=True,
        timeout=150,
        stdin=subprocess.DEVNULL,
        env={k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | (env or {}),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "the tracker owns no part of the screen"
    assert [row.step for row in read_history(folder / "metrics.jsonl").rows] == [1, 2, 3]
    return done.stderr, time.monotonic() - begun


def seconds_of_steps(stderr: str) -> float:
    return float(next(line for line in stderr.splitlines() if line.startswith("steps took")).split()[-1])


def test_offline_run_is_really_written_and_holds_no_secret(tmp_path: Path) -> None:
    stderr, _ = run_apart(tmp_path, "offline")
    assert "stopped" not in stderr
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert f"where {run}" in stderr
    (data,) = run.glob("run-*.wandb")
    assert data.name == f"run-{(tmp_path / 'wandb_run_id').read_text()}.wandb"
    assert b"reward/mean" in data.read_bytes() and b"train/global_step" in data.read_bytes()
    tables = list(run.glob("files/media/table/**/*.json"))
    assert tables and sum(len(json.loads(t.read_text())["data"]) for t in tables) == 6, "two of five rows, three steps"
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), f"{file} holds a secret"


KILLED_RUN = """
import os, signal, sys, time
from pathlib import Path
from raylign.conf.schema import *
from raylign.records.run_folder import RunPaths
from raylign.records.tracking import Tracker
folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
config = RunConfig(algorithm=AlgorithmConfig(name="ppo"), tracking=TrackingConfig(wandb=WandbMode.offline))
tracker = Tracker(RunPaths(folder), config, resumed_step=first - 1 if first > 1 else None, environ={})
while not tracker.where:
    time.sleep(0.05)
for step in range(first, last + 1):
    tracker.log(step, {"reward/mean": step / 3})
if last < 8:
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
tracker.finish(exit_code=0)
"""


@pytest.mark.thorough
def test_what_a_killed_life_had_told_is_told_again(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}

    def life(first: int, last: int) -> None:
        given = [sys.executable, "-c", KILLED_RUN, str(tmp_path), str(first), str(last)]
        ended = subprocess.run(given, timeout=100, env=env, stdin=subprocess.DEVNULL, capture_output=True)
        assert ended.returncode == (0 if last == 8 else -signal.SIGKILL), ended.stderr

    life(1, 5)  # of which W&B's process has mostly written nothing
    life(4, 8)  # from a checkpoint at 3
    curve = {step: values["reward/mean"] for step, values in drawn(tmp_path).items()}
    assert curve == {row.step: row.values["reward/mean"] for row in read_history(tmp_path / "metrics.jsonl").rows}
    assert sorted(curve) == list(range(1, 9))


ENDED_RUNS = """
import sys
from pathlib import Path
from raylign.conf.schema import WandbMode
from raylign.records.sinks import SinkTarget
from raylign.records.wandb_sink import WandbSink
for code in map(int, sys.argv[2:]):
    folder = Path(sys.argv[1]) / str(code)
    folder.mkdir()
    sink = WandbSink(SinkTarget(WandbMode.offline, "toy", str(code), f"run{code}", folder, {}))
    sink.finish(code)
    sink.close()
"""


def test_a_run_that_can_be_resumed_ends_as_preempted(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    codes = {0: False, RunFailed.exit_code: False, Stopped.exit_code: True, Preempted.exit_code: True}
    given = [sys.executable, "-c", ENDED_RUNS, str(tmp_path), *map(str, codes)]
    subprocess.run(given, check=True, timeout=280, env=env, stdin=subprocess.DEVNULL, capture_output=True)
    for code, resumable in codes.items():
        (life,) = (tmp_path / str(code) / "wandb").glob("offline-run-*")
        assert ending(life) == (code, resumable)


STOPPED_RUN = """
import os, sys, time
from pathlib import Path
import psutil
from raylign.conf.schema import *
from raylign.records.run_folder import RunPaths
from raylign.records.tracking import Tracker
folder, last_words = Path(sys.argv[1]), int(sys.argv[2])
config = RunConfig(algorithm=AlgorithmConfig(name="ppo"), tracking=TrackingConfig(wandb_samples=0))
tracker = Tracker(RunPaths(folder), config, resumed_step=None, environ=os.environ)
while not tracker.where:
    time.sleep(0.05)
for step in range(1, 5):
    tracker.log(step, {"reward/mean": step / 3})
time.sleep(1.0)
signalled = [p for p in psutil.Process().children(recursive=True) if p.name() == "wandb-core"]
for process in signalled:  # as `ray job stop` does
    process.terminate()
psutil.wait_procs(signalled, timeout=20)
for step in range(5, 5 + last_words):
    tracker.log(step, {"reward/mean": step / 3})
tracker.finish(exit_code=76, deadline_s=100.0)
assert len(signalled) == 1
"""


@pytest.mark.parametrize("last_words", [0, 2], ids=["between steps", "before the last steps"])
def test_a_stop_that_reaches_its_process_too_costs_nothing(tmp_path: Path, last_words: int) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    given = [sys.executable, "-c", STOPPED_RUN, str(tmp_path), str(last_words)]
    done = subprocess.run(given, timeout=200, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count(REOPENED.partition("%s")[0]) == 1 and "stopped (" not in done.stderr
    assert {step: values["reward/mean"] for step, values in drawn(tmp_path).items()} == {
        step: step / 3 for step in range(1, 5 + last_words)
    }
    first, second = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert ending(second) == (Preempted.exit_code, True)
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2] == (tmp_path / "wandb_run_id").read_text()
    assert (tmp_path / ".sinks_sent").read_text() == str(4 + last_words)  # the next life sends none of them again


def test_an_unwritable_wandb_folder_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "wandb").write_text("in the way")  # also refuses root, whom permissions do not stop
    (tmp_path / "tmp").write_text("no fallback either")
    stderr, _ = run_apart(tmp_path, "offline", env={"TMPDIR": str(tmp_path / "tmp")})
    assert stderr.count("Weights & Biases stopped") == 1, stderr


@pytest.mark.slow
def test_a_server_that_never_answers_costs_no_step_and_a_bounded_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        stderr, lived = run_apart(
            tmp_path, "online", key="0" * 40, deadline_s=3.0, env={"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40}
        )
    assert "did not finish in 3 s" in stderr
    assert seconds_of_steps(stderr) < 1.0
    assert lived < 50.0
