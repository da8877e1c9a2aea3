"""How long a run takes from the command to its first step, and which processes spend it.

    python -m benchmarks.start_up --model FOLDER [--rows FILE] [--modes sft ppo] [--runs 3] [--json FILE]

`--rows`: GSM8K's JSONL (`question`, `answer`); made-up ones without it. Each run is `raylign train` for one step, one
rank, one engine, one rule. Wall-clock time is told up to the first step's end, and online up to the moment where its
generation begins and ends; processor time is that of every process up to the first step's end. On a machine that others
use only the second says something.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import psutil
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths
from rich.console import Console
from rich.table import Table

from benchmarks.family import family

DEADLINE_S = 900.0
LOOK_EVERY_S = 0.1


@dataclass(slots=True)
class Spent:
    """One process, as last seen."""

    name: str
    began_s: float  # after the command
    cpu_s: float = 0.0


@dataclass(slots=True)
class Start:
    """One run's start. Seconds after the command; NaN where there is no such moment."""

    mode: str
    first_step_s: float = float("nan")
    generation_begins_s: float = float("nan")
    first_answers_s: float = float("nan")
    processes: dict[int, Spent] = field(default_factory=dict)

    @property
    def cpu_s(self) -> float:
        """Of all processes."""
        return sum(spent.cpu_s for spent in self.processes.values())


def command(mode: str, model: str, rows: Path, root: str) -> list[str]:
    """SFT, or PPO with a critic, a reference and one rule."""
    threads = os.cpu_count() or 1
    given = [
        f"+experiment={mode}_tiny_cpu", "name=run", f"run_root={root}", "num_steps=1", f"policy.model={model}",
        f"data.train={rows}", "policy.num_ranks=1", f"policy.threads_per_rank={threads}", "data.max_length=512",
        "policy.precision=bfloat16", "policy.micro_batch_tokens=2048", "tracking.wandb=disabled",
    ]  # fmt: skip
    if mode == "ppo":
        given += [
            f"critic.model={model}", "critic.num_ranks=1", f"critic.threads_per_rank={threads}",
            "critic.precision=bfloat16", "reference.precision=bfloat16", f"rollout.threads_per_worker={threads}",
            "rollout.num_workers=1", "rollout.max_new_tokens=64", "rollout.max_model_len=320",
            "rollout.prompts_per_step=8", "rollout.samples_per_prompt=4", "rollout.kv_cache_gb=0.4",
            "algorithm.sequences_per_update=32", "data.max_prompt_tokens=256", "sync.max_canary_gap=0.5",
            "reward.rules=[{rule: 'length_target:32'}]", "cluster.object_store_gb=1.0",
        ]  # fmt: skip
    else:
        given += ["algorithm.rows_per_update=8"]
    return [sys.executable, "-m", "raylign.app.cli", "train", *given]


def start_once(mode: str, model: str, rows: Path) -> Start:
    """One run, watched until its first step is logged, and then to its end."""
    with tempfile.TemporaryDirectory() as root:
        metrics = RunPaths(Path(root) / "run").metrics
        found, began = Start(mode), time.time()
        with (Path(root) / "log").open("w+") as log:
            run = subprocess.Popen(command(mode, model, rows, root), stdout=log, stderr=subprocess.STDOUT)
            try:
                while run.poll() is None and not _has_step(metrics):
                    _look(run.pid, began, found.processes)
                    if time.time() - began > DEADLINE_S:
                        raise TimeoutError(f"{mode}: no step after {DEADLINE_S:g} s")
                    time.sleep(LOOK_EVERY_S)
                found.first_step_s = time.time() - began
                run.wait(DEADLINE_S)
            finally:
                run.kill()
            if run.returncode:
                log.seek(0)
                raise RuntimeError(f"{mode} ended with {run.returncode}:\n{log.read()[-4000:]}")
        told = {name: _first(metrics, f"time/{name}") for name in ("step", "generation")}
    if mode == "ppo":
        found.generation_begins_s = found.first_step_s - told["step"]
        found.first_answers_s = found.generation_begins_s + told["generation"]
    return found


def _has_step(metrics: Path) -> bool:
    try:
        return any(json.loads(line).get("step", 0) > 0 for line in metrics.read_text(encoding="utf-8").splitlines())
    except (FileNotFoundError, json.JSONDecodeError):
        return False


def _first(metrics: Path, name: str) -> float:
    return next((value for step, value in read_history(metrics).series(name) if step > 0 and value is not None), 0.0)


def _look(pid: int, began: float, seen: dict[int, Spent]) -> None:
    for one in family(pid):
        try:
            spent = seen.setdefault(one.pid, Spent("", one.create_time() - began))
            used = one.cpu_times()
            spent.cpu_s, spent.name = used.user + used.system, _named(one)
        except psutil.Error:
            continue  # it has ended


def _named(process: psutil.Process) -> str:
    words = process.cmdline()
    if words and words[0].startswith("ray::"):
        return words[0].split(".")[0]
    scripts = [Path(word).name for word in words if word.endswith(".py")]
    return "command" if "raylign.app.cli" in words else (scripts[0] if scripts else process.name())


def rows_for(mode: str, source: Path | None, target: Path) -> None:
    """400 rows as the mode reads them."""
    asked = [{"question": f"What is {i} + {i}?", "answer": f"It is {2 * i}."} for i in range(400)]
    if source is not None:
        with source.open(encoding="utf-8") as file:
            asked = [json.loads(line) for line in islice(file, 400)]
    made = [{"prompt": row["question"], **({"completion": row["answer"]} if mode == "sft" else {})} for row in asked]
    target.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


def show(starts: list[Start]) -> None:
    """A table of moments, and for the last run of each mode one of processes."""
    console = Console(width=120)
    table = Table("mode", "generation begins, s", "first answers, s", "first step ends, s", "processor seconds")
    for start in starts:
        moments = (start.generation_begins_s, start.first_answers_s, start.first_step_s, start.cpu_s)
        table.add_row(start.mode, *(f"{moment:.1f}" for moment in moments))
    console.print(table)
    for mode in dict.fromkeys(start.mode for start in starts):
        of_mode = [start for start in starts if start.mode == mode]
        table = Table("process", "begins after, s", "processor seconds", title=mode)
        for spent in sorted(of_mode[-1].processes.values(), key=lambda spent: spent.began_s):
            if spent.cpu_s >= 0.05:
                table.add_row(spent.name, f"{spent.began_s:.1f}", f"{spent.cpu_s:.1f}")
        console.print(table)
        console.print(
            f"{mode}: median of {len(of_mode)} runs {statistics.median(s.first_step_s for s in of_mode):.1f} s"
        )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--modes", nargs="+", default=["sft", "ppo"], choices=["sft", "ppo"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    starts = []
    with tempfile.TemporaryDirectory() as folder:
        for mode in given.modes:
            rows = Path(folder) / f"{mode}.jsonl"
            rows_for(mode, given.rows, rows)
            starts += [
                start_once(mode, str(Path(given.model).expanduser().absolute()), rows) for _ in range(given.runs)
            ]
    show(starts)
    if given.json:
        given.json.write_text(json.dumps([asdict(start) for start in starts], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
