"""Plays one run through a seeded list of faults, then the same journal without any, and compares.

    python -m tests.soak.soak --seed 7 --faults 60 --steps 240 --folder /tmp/soak

Fault i strikes when step i * steps / faults is told, so a seed gives the same history wherever it runs. At the end: the
target step is reached, the ledger is clean, the last state equals that of a run that trains the journal's batches in
peace, no process of the run is left, and no role has grown in memory or open files.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from raylign.data.sample_model import tiny_model
from raylign.records.journal import JournalError, read_batch
from raylign.records.ledger_check import check_ledger
from raylign.records.run_folder import RunPaths

from tests.soak.faults import DRIVER, damage, kept_whole, schedule, strike
from tests.system.role_processes import newest, role_process
from tests.system.test_bit_equal import saved_bytes
from tests.system.tiny_runs import question_rows, run_settings

PACE_S = 300.0
"""A run that tells no step for so long is stuck, whatever was done to it."""

WATCHED = ("policy-0", "policy-1", "critic-0", "assembler-0", "reward-0")
GROWTH_MB, GROWTH_FILES = 64, 12


@dataclass(frozen=True)
class Plan:
    """One soak."""

    folder: Path
    seed: int
    num_faults: int
    num_steps: int


@dataclass
class Usage:
    """Resident megabytes and open files of each role's processes, over all of its lives."""

    seen: dict[str, list[tuple[float, int]]] = field(default_factory=dict)

    def look(self, run: RunPaths, driver: int) -> None:
        """Once, of everybody who lives."""
        for name, pid in (("driver", driver), *((log, role_process(run, log)) for log in WATCHED)):
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                figures = (pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir(f"/proc/{pid}/fd")))
            except (OSError, ValueError, IndexError):
                continue
            self.seen.setdefault(name, []).append(figures)

    def growth(self) -> dict[str, tuple[float, float]]:
        """By role: the median of the last third over that of the second one: the first third is start-up."""
        found = {}
        for name, series in self.seen.items():
            third = len(series) // 3
            if third >= 3:
                middle, end = series[third : 2 * third], series[2 * third :]
                found[name] = tuple(median(s[i] for s in end) - median(s[i] for s in middle) for i in (0, 1))
        return found  # type: ignore[return-value]


class Soak:
    """The run, its driver and what has been done to it."""

    def __init__(self, plan: Plan, tell: Callable[[str], None]) -> None:
        self.plan, self.tell = plan, tell
        self.run = RunPaths(plan.folder / "soak")
        self.struck: Counter[str] = Counter()
        self.usage = Usage()
        self._draw = random.Random(plan.seed)
        self._log = plan.folder / "driver.log"
        self._driver: subprocess.Popen[bytes] | None = None

    def settings(self, name: str) -> list[str]:
        """PPO with a critic, adaptive KL, normalised rewards and two policy ranks, on a tiny model."""
        folder = self.plan.folder
        prompts = folder / "prompts.jsonl"
        if not prompts.exists():
            prompts.write_text(question_rows(20))
        model = tiny_model(folder / "tiny", tie=True)
        return [
            *run_settings("ppo", model, prompts, folder), f"name={name}", f"num_steps={self.plan.num_steps}",
            "policy.num_ranks=2", "policy.optim.lr=1e-4", "critic.optim.lr=1e-4", "algorithm.kl_target=0.5",
            "algorithm.kl_controller=adaptive", "reward.normalize=true", "rollout.num_workers=2",
            "checkpoint.every=5", "checkpoint.journal=all", "tracking.samples_every=10", "cluster.max_rebuilds=6",
            "cluster.max_worker_restarts=50",
            "cluster.step_timeout_s=20", "sync.timeout_s=40", "rollout.timeout_s=120", "rollout.health_timeout_s=10",
            "rollout.prompts_per_step=4", "rollout.samples_per_prompt=4", "algorithm.sequences_per_update=8",
            "cluster.object_store_gb=0.3", f"seed={self.plan.seed}",
        ]  # fmt: skip

    def play(self) -> None:
        """Every fault, then to the end. Raises AssertionError when the run ends otherwise than it may."""
        kinds = schedule(self.plan.seed, self.plan.num_faults)
        try:
            for number, kind in enumerate(kinds, 1):
                self._until(number * self.plan.num_steps // (len(kinds) + 2))
                self._hurt(number, kind)
            self._until(self.plan.num_steps)
            self._driver = self._driver or self._start()
            assert self._ended() == 0, self._tail()
        finally:
            if self._driver is not None:
                self._driver.kill()

    def _hurt(self, number: int, kind: str) -> None:
        self.tell(f"{time.strftime('%H:%M:%S')} fault {number}, step {newest(self.run)}: {kind}")
        if kind in DRIVER:
            assert self._driver is not None
            terminated = kind.startswith("terminate")
            self._driver.send_signal(signal.SIGTERM if terminated else signal.SIGKILL)
            code = self._ended()
            assert code == (76 if terminated else -signal.SIGKILL), f"{kind}: exit code {code}\n{self._tail()}"
            if " and " in kind:
                self.tell(f"  damaged: {damage(self.run, kind, self._draw)}")
        else:
            deadline = time.monotonic() + PACE_S
            while strike(self.run, kind, self._draw) is None:
                assert time.monotonic() < deadline, f"{kind}: there is nobody to strike\n{self._tail()}"
                self._keep_alive()
                time.sleep(0.1)
        self.struck[kind] += 1

    def _until(self, step: int) -> None:
        """Wait for the step, starting the driver where there is none."""
        deadline, seen = time.monotonic() + PACE_S, newest(self.run)
        while (now := newest(self.run)) < step:
            if now != seen:
                deadline, seen = time.monotonic() + PACE_S, now
            assert time.monotonic() < deadline, f"no step after {now} for {PACE_S:g} s\n{self._tail()}"
            self._keep_alive()
            time.sleep(0.5)

    def _keep_alive(self) -> None:
        if self._driver is None:
            self._driver = self._start()
        code = self._driver.poll()
        assert code is None or (code == 0 and newest(self.run) == self.plan.num_steps), f"{code}: {self._tail()}"
        self.usage.look(self.run, self._driver.pid)

    def _ended(self) -> int:
        assert self._driver is not None
        code = self._driver.wait(PACE_S)
        self._driver = None
        return code

    def _start(self) -> subprocess.Popen[bytes]:
        return start(self.settings("soak"), self._log)

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-4000:]


def start(settings: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A driver with simulated engines; everything it says goes to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.soak.simulated", "train", *settings],
            stdout=file, stderr=file, cwd=Path(__file__).parents[2], env=dict(os.environ),
        )  # fmt: skip


def replay(soak: Soak) -> RunPaths:
    """A run that finds the other's journal and trains it from the first step, without faults."""
    peaceful = RunPaths(soak.plan.folder / "replay")
    peaceful.path.mkdir()
    peaceful.lock.touch()
    shutil.copytree(soak.run.journal, peaceful.journal)
    for whole in kept_whole(soak.run).glob("*.batch"):
        with contextlib.suppress(JournalError):
            read_batch(peaceful.journal, int(whole.stem.removeprefix("step-")))
            continue
        shutil.copy(whole, peaceful.journal)
    log = soak.plan.folder / "replay.log"
    process = start(soak.settings("replay"), log)
    try:
        assert process.wait(3600) == 0, log.read_text(errors="replace")[-4000:]
    finally:
        process.kill()
    told = log.read_text(errors="replace")
    assert f"steps 1 to {soak.plan.num_steps} are trained again" in told, "the journal was not used"
    return peaceful


def check(soak: Soak) -> list[str]:
    """What is not as it should be."""
    problems = []
    report = check_ledger(soak.run.path, max_staleness=0)
    assert report is not None
    problems += [f"ledger: {problem}" for problem in report.problems]
    if report.other_samples:
        problems.append(f"{report.other_samples} steps were done again with other samples")
    if newest(soak.run) != soak.plan.num_steps:
        problems.append(f"step {newest(soak.run)} is not the target")
    if saved_bytes(soak.run, soak.plan.num_steps) != saved_bytes(replay(soak), soak.plan.num_steps):
        problems.append("the last state is not that of the journal trained without faults")
    for role, (megabytes, files) in soak.usage.growth().items():
        soak.tell(f"  {role}: {megabytes:+.0f} MB, {files:+.0f} open files over the last two thirds")
        if megabytes > GROWTH_MB or files > GROWTH_FILES:
            problems.append(f"{role} has grown by {megabytes:.0f} MB and {files:.0f} open files")
    left = [log.stem for log in soak.run.logs.glob("*.log") if role_process(soak.run, log.stem) is not None]
    if left:
        problems.append(f"processes are left: {left}")
    for sentence in report.sentences():
        soak.tell(sentence)
    return problems


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    for name, given in (("seed", 7), ("faults", 60), ("steps", 240)):
        parser.add_argument(f"--{name}", type=int, default=given)
    parser.add_argument("--folder", type=Path, required=True)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True)

    def tell(text: str) -> None:
        print(text, flush=True)

    began = time.monotonic()
    soak = Soak(Plan(asked.folder.resolve(), asked.seed, asked.faults, asked.steps), tell)
    soak.play()
    tell(f"{sum(soak.struck.values())} faults of {len(soak.struck)} kinds in {time.monotonic() - began:.0f} s")
    problems = check(soak)
    for problem in problems:
        tell(f"problem: {problem}")
    tell(f"seed {asked.seed}: {'clean' if not problems else 'not clean'}; {time.monotonic() - began:.0f} s in all")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
