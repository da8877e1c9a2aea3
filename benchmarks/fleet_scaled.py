"""A live run whose rollout workers go from one to four to two, then lose one: is the learner disturbed?

    python -m benchmarks.fleet_scaled --steps 12 --takes 1 --out fleet.svg

The driver, the learner with its ZeRO engine, the reward, the ledger and `raylign scale` are real; the engines are
simulated (tests/soak/simulated.py), so that four of them fit beside a learner on two cores: a call takes `--takes`
seconds and no processor time. Prints by phase the seconds of a step and of the policy's update, and draws the plot.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from raylign.data.sample_model import tiny_model
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths

from benchmarks.fleet_plot import draw
from tests.soak import simulated
from tests.system.role_processes import newest, role_process
from tests.system.tiny_runs import question_rows, run_settings

DEADLINE_S = 600.0


def settings(folder: Path) -> list[str]:
    """GRPO a step ahead: 64 answers a step, 16 at a time in a worker."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text(question_rows(64))
    return [
        *run_settings("grpo", tiny_model(folder / "tiny", tie=True), prompts, folder), "name=fleet",
        "num_steps=100000", "rollout.num_workers=1", "rollout.max_staleness=1", "rollout.max_concurrent=4",
        "rollout.max_new_tokens=96", "rollout.max_model_len=192", "cluster.object_store_gb=0.3", "policy.optim.lr=1e-5",
    ]  # fmt: skip


class Phases:
    """The run, and the first step of each phase."""

    def __init__(self, run: RunPaths, process: subprocess.Popen[bytes], log: Path) -> None:
        self.run, self._process, self._log = run, process, log
        self.begins: list[tuple[str, int]] = []

    def until(self, done: Callable[[], bool]) -> None:
        """Wait. Raises AssertionError when the run ends, or after `DEADLINE_S`."""
        deadline = time.monotonic() + DEADLINE_S
        while not done():
            alive = self._process.poll() is None
            assert alive and time.monotonic() < deadline, self._log.read_text(errors="replace")[-4000:]
            time.sleep(0.2)

    def phase(self, name: str, workers: int, steps: int) -> None:
        """From the first step with so many workers on, `steps` steps."""
        self.until(lambda: self._latest("rollout/workers") == workers)
        first = newest(self.run)
        self.begins.append((name, first))
        self.until(lambda: newest(self.run) >= first + steps)

    def _latest(self, metric: str) -> float:
        return read_history(self.run.metrics).latest().get(metric, 0.0)

    def table(self) -> str:
        """Medians by phase; the first step of a phase is left out, in which workers come and go."""
        rows = read_history(self.run.metrics).rows
        ends = [first for _, first in self.begins[1:]] + [rows[-1].step]
        lines = [f"{'phase':28} {'steps':>7} {'step s':>8} {'update s':>9} {'longest update s':>17}"]
        for (name, first), end in zip(self.begins, ends, strict=True):
            part = [row.values for row in rows if first < row.step <= end]
            updates = [values["time/policy_update"] for values in part]
            took = median(values["time/step"] for values in part)
            lines.append(f"{name:28} {len(part):7} {took:8.2f} {median(updates):9.2f} {max(updates):17.2f}")
        return "\n".join(lines)


def scaled(run: RunPaths, workers: int) -> None:
    """`raylign scale RUN rollout=N`."""
    order = [Path(sys.executable).with_name("raylign"), "scale", run.path, f"rollout={workers}"]
    subprocess.run([str(word) for word in order], check=True, timeout=60)


def driven(folder: Path, takes: float) -> subprocess.Popen[bytes]:
    """The run's driver."""
    start = [sys.executable, "-m", "benchmarks.fleet_scaled", "--driver", str(takes), "train", *settings(folder)]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(start, stdout=log, stderr=log, cwd=Path(__file__).parents[1], env=dict(os.environ))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12, help="steps a phase")
    parser.add_argument("--takes", type=float, default=1.0, help="seconds of a call to an engine")
    parser.add_argument("--out", type=Path, default=Path("fleet.svg"))
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    run = RunPaths(folder / "fleet")
    process = driven(folder, asked.takes)
    phases = Phases(run, process, folder / "log")
    try:
        phases.phase("one worker", 1, asked.steps)
        for name, workers in (("four", 4), ("two", 2)):
            scaled(run, workers)
            phases.phase(name, workers, asked.steps)
        died = role_process(run, "rollout-0") or role_process(run, "rollout-1")
        assert died is not None
        os.kill(died, signal.SIGKILL)
        phases.phase("one of the two killed", 1, 1)
        phases.phase("two again", 2, asked.steps)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 76
    finally:
        process.kill()
    asked.out.write_text(draw(run.metrics))
    print(phases.table())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--driver"]:
        simulated.TAKES_S = float(sys.argv[2])
        del sys.argv[1:3]
        simulated.main()
    else:
        main()
