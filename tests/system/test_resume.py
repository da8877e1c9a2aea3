"""A run that is stopped and resumed with the printed command is the run that was never stopped."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths
from raylign.records.samples import read_samples
from raylign.trainer.checkpoint import CheckpointStore

from tests.system.tiny_runs import PPO_STEPS

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

RAYLIGN = Path(sys.executable).with_name("raylign")
DEADLINE_S = 400
MEASURED = (
    "time/",
    "perf/",
    "sync/seconds",
    "policy/seconds",
    "critic/seconds",
    "rollout/tokens_per_s",
    "rollout/idle_share",
    "engine/",
    "eval/",
)
"""What no two runs share, and the evaluation that the stopped run was not asked for."""


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """The command as a person runs it; everything it says goes to `log`."""
    with log.open("wb") as file:
        return subprocess.Popen([RAYLIGN, *arguments], stdout=file, stderr=subprocess.STDOUT, env=dict(os.environ))


def stop_after_first_step(process: subprocess.Popen[bytes], run: RunPaths, log: Path) -> None:
    """SIGTERM while a later step is under way."""
    deadline = time.monotonic() + DEADLINE_S
    while not read_history(run.metrics).rows:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def resumed(ppo_settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """Stopped by SIGTERM, then continued by the command in its last line."""
    root = tmp_path_factory.mktemp("stopped")
    run, log = RunPaths(root / "stopped"), root / "log"
    process = start(["train", *ppo_settings, "name=stopped", f"run_root={root}"], log)
    try:
        stop_after_first_step(process, run, log)
        assert process.wait(DEADLINE_S) == 76, log.read_text()
    finally:
        process.kill()
    last_line = log.read_text().splitlines()[-1]
    steps = [row.step for row in read_history(run.metrics).rows]
    assert steps == list(range(1, len(steps) + 1)) and 1 <= len(steps) < PPO_STEPS
    assert f"last good step {len(steps)}" in last_line, last_line
    program, *arguments = shlex.split(last_line.partition("resume with: ")[2])
    assert program == "raylign"

    process = start(arguments, log)
    try:
        assert process.wait(DEADLINE_S) == 0, log.read_text()
    finally:
        process.kill()
    return run


def test_the_same_samples_are_drawn_scored_and_weighed(ppo_run: RunPaths, resumed: RunPaths) -> None:
    """Prompts, token ids, rewards and advantages of every step, before and after the stop."""
    for step in range(1, PPO_STEPS + 1):
        whole = {row.key: row for row in read_samples(ppo_run.samples_file(step))}
        again = {row.key: row for row in read_samples(resumed.samples_file(step))}
        assert whole.keys() == again.keys()
        for key, row in whole.items():
            twin = again[key]
            assert (twin.response_ids, twin.finish_reason) == (row.response_ids, row.finish_reason), (step, key)
            assert twin.rollout_logprobs == pytest.approx(row.rollout_logprobs, abs=1e-4)
            assert (twin.reward, twin.advantage) == pytest.approx((row.reward, row.advantage), abs=1e-4)


def test_every_step_is_told_once_with_the_same_numbers(ppo_run: RunPaths, resumed: RunPaths) -> None:
    """Losses, learning rate, KL coefficient, normalised rewards: all but the clock's."""
    whole = {row.step: row.values for row in read_history(ppo_run.metrics).rows if row.step > 0}
    lines = [line for line in resumed.metrics.read_text().splitlines() if line]
    again = {row.step: row.values for row in read_history(resumed.metrics).rows}
    assert len(lines) == PPO_STEPS and list(again) == list(whole) == list(range(1, PPO_STEPS + 1))
    for step, values in whole.items():
        same = {name: value for name, value in values.items() if not name.startswith(MEASURED)}
        twin = {name: value for name, value in again[step].items() if not name.startswith(MEASURED)}
        assert twin == pytest.approx(same, rel=1e-4, abs=1e-5), step
    assert len({values["policy/kl_coef"] for values in whole.values()}) > 1, "the controller never moved"
    assert len({values["policy/lr"] for values in whole.values()}) > 1, "the schedule never moved"


def test_the_last_checkpoints_agree(ppo_run: RunPaths, resumed: RunPaths) -> None:
    """Data position, KL controller and reward statistics; the second start is counted."""
    whole, again = (CheckpointStore(run.checkpoints, keep=2).latest() for run in (ppo_run, resumed))
    assert whole is not None and again is not None
    assert (again.state.step, again.state.data) == (whole.state.step, whole.state.data)
    for mine, theirs in ((again.state.kl, whole.state.kl), (again.state.reward, whole.state.reward)):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            expected = pytest.approx(theirs[name], rel=1e-4) if isinstance(value, float) else theirs[name]
            assert value == expected, name
    assert (whole.state.run_generation, again.state.run_generation) == (1, 2)
