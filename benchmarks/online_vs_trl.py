"""GRPO, RLOO and PPO against TRL: same machine, model, prompts, budget of tokens, precision, one update a step.

    python -m benchmarks.online_vs_trl --model FOLDER [--rows FILE] [--steps 4] [--pairs 3] [--json FILE]

`--rows`: GSM8K's `question` as JSONL; generated questions without it. Each run is a command of its own, sides
alternate, and its whole time counts from the command to its end: imports, start of the roles, `--steps` steps, the
model written (ours also writes a checkpoint and a report). A step's time is the median without the first. What TRL's
sides set is said in online_sides/trl_run.py; ratios are to the faster one. TRL 1.16 has no PPO, so ours is measured
alone. TRL generates with transformers; with vLLM (`trl-vllm`; it supports 0.22 to 0.31, here is 0.32) it fails on a
CPU build at its first transfer of weights. The time of 50 steps is extrapolated: the run's own and the missing steps
at a step's time. The share of the ceiling is the operations that the algorithm needs, 10 a parameter and token
(sampling 2, reference 2, update 6; PPO's critic 8 more), over the speed of a 2048^3 product before the pair.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import psutil
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths
from raylign.records.samples import read_samples
from rich.console import Console
from rich.table import Table

from benchmarks.family import family
from benchmarks.offline_vs_trl import gemm_flops, parameters

OPERATIONS = {"grpo": 10, "rloo": 10, "ppo": 18}
"""A parameter and token."""
LONG_RUN = 50
RUN_DEADLINE_S = 3600.0
SAMPLE_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Job:
    """One run of one side."""

    side: str  # ours, trl, trl-best, trl-batching or trl-vllm
    algorithm: str
    precision: str
    model: str
    rows: str
    steps: int
    scratch: str
    told: str
    prompts: int = 8
    samples: int = 4
    answer_tokens: int = 64
    lr: float = 1e-6
    kl_coef: float = 0.05


@dataclass(frozen=True, slots=True)
class Run:
    """What one run took."""

    whole_s: float  # from the command to its end
    steps_s: tuple[float, ...]
    tokens: tuple[float, ...]  # prompts and answers of each step, without padding
    answer_tokens: float  # mean of an answer
    memory_gb: float  # peak of the proportional set sizes of all its processes

    @property
    def step_s(self) -> float:
        """Median without the first."""
        return statistics.median(self.steps_s[1:])

    @property
    def tokens_per_s(self) -> float:
        """Of the same steps."""
        return sum(self.tokens[1:]) / sum(self.steps_s[1:])

    @property
    def long_s(self) -> float:
        """Of LONG_RUN steps, extrapolated."""
        return self.whole_s + (LONG_RUN - len(self.steps_s)) * self.step_s


def our_command(job: Job) -> list[str]:
    """One rank, one engine, both with every core: as the demo sets a machine of two."""
    threads, answers = os.cpu_count() or 1, job.prompts * job.samples
    critic = [f"critic.model={job.model}", *_learner("critic", job, threads)] if job.algorithm == "ppo" else []
    return [
        sys.executable, "-m", "raylign.app.cli", "train", f"+experiment={job.algorithm}_tiny_cpu", "name=run",
        f"run_root={job.scratch}", f"num_steps={job.steps}", f"policy.model={job.model}", f"data.train={job.rows}",
        *_learner("policy", job, threads), *critic, f"reference.precision={job.precision}",
        f"reference.threads_per_rank={threads}", "reward.rules=[{rule: 'length_target:32'}]",
        f"rollout.precision={job.precision}", "rollout.num_workers=1", f"rollout.threads_per_worker={threads}",
        f"rollout.prompts_per_step={job.prompts}", f"rollout.samples_per_prompt={job.samples}",
        f"rollout.max_new_tokens={job.answer_tokens}", "rollout.max_model_len=320", "rollout.kv_cache_gb=0.4",
        "data.max_prompt_tokens=256", "data.max_length=320", f"algorithm.sequences_per_update={answers}",
        f"algorithm.kl_coef={job.kl_coef}", "sync.max_canary_gap=0.5", "cluster.object_store_gb=1.0",
        "tracking.wandb=disabled",
    ]  # fmt: skip


def _learner(role: str, job: Job, threads: int) -> list[str]:
    return [
        f"{role}.precision={job.precision}", f"{role}.num_ranks=1", f"{role}.threads_per_rank={threads}",
        f"{role}.optim.lr={job.lr}", f"{role}.micro_batch_tokens=2048",
    ]  # fmt: skip


def play(job: Job) -> Run:
    """In a process of its own, its memory watched."""
    command = our_command(job)
    if job.side != "ours":
        command = [sys.executable, "-m", "benchmarks.online_sides.trl_run", json.dumps(asdict(job))]
    peak, over = [0.0], threading.Event()
    with (Path(job.scratch) / "log").open("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        watcher = threading.Thread(target=_watch, args=(process.pid, peak, over))
        watcher.start()
        try:
            code = process.wait(RUN_DEADLINE_S)
            whole = time.perf_counter() - started
        finally:
            over.set()
            watcher.join(SAMPLE_EVERY_S * 5)
            process.kill()
        if code:
            log.seek(0)
            raise RuntimeError(f"{job.side} ended with {code}:\n{log.read()[-4000:]}")
    steps_s, tokens, answer = _ours_told(job) if job.side == "ours" else _trl_told(job)
    return Run(whole, steps_s, tokens, answer, peak[0])


def _watch(pid: int, peak: list[float], over: threading.Event) -> None:
    while not over.wait(SAMPLE_EVERY_S):
        total = 0
        for one in family(pid):
            try:
                total += one.memory_full_info().pss
            except psutil.Error:
                continue  # it has ended
        peak[0] = max(peak[0], total / 1e9)


def _ours_told(job: Job) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    run = RunPaths(Path(job.scratch) / "run")
    steps = [value for step, value in read_history(run.metrics).series("time/step") if step > 0 and value is not None]
    drawn = [read_samples(run.samples_file(step)) for step in range(1, job.steps + 1)]
    tokens = tuple(float(sum(len(row.prompt_ids) + len(row.response_ids) for row in rows)) for rows in drawn)
    return tuple(steps), tokens, statistics.mean(len(row.response_ids) for rows in drawn for row in rows)


def _trl_told(job: Job) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    told = json.loads(Path(job.told).read_text(encoding="utf-8"))
    return tuple(told["steps_s"]), tuple(told["tokens"]), statistics.mean(told["answer_tokens"])


@dataclass(frozen=True, slots=True)
class Comparison:
    """All pairs of one algorithm and precision."""

    algorithm: str
    precision: str
    pairs: tuple[dict[str, Run], ...]
    ceiling_flops: tuple[float, ...]  # before each pair
    num_parameters: int

    def rows(self) -> list[tuple[str, ...]]:
        """Of the table: a line a side."""
        return [self._row(side) for side in self.pairs[0]]

    def _row(self, side: str) -> tuple[str, ...]:
        runs = [pair[side] for pair in self.pairs]
        needed = OPERATIONS[self.algorithm] * self.num_parameters
        shares = [needed * run.tokens_per_s / flops for run, flops in zip(runs, self.ceiling_flops, strict=True)]
        return (
            f"{self.algorithm} {self.precision} {side}",
            _median(run.step_s for run in runs), self._ratio(side, "step_s"),
            _median(run.whole_s for run in runs), self._ratio(side, "whole_s"),
            _median(run.long_s for run in runs), self._ratio(side, "long_s"),
            _median(run.tokens_per_s for run in runs), _median(run.answer_tokens for run in runs),
            _median(run.memory_gb for run in runs), f"{statistics.median(shares):.0%}",
        )  # fmt: skip

    def _ratio(self, side: str, name: str) -> str:
        """How many times as long the faster TRL takes, pair by pair: median (range)."""
        if side != "ours" or len(self.pairs[0]) == 1:
            return ""
        found = [
            min(getattr(run, name) for other, run in pair.items() if other != "ours") / getattr(pair["ours"], name)
            for pair in self.pairs
        ]
        return f"{statistics.median(found):.2f} ({min(found):.2f}-{max(found):.2f})"


def _median(values: Iterable[float]) -> str:
    return f"{statistics.median(values):.1f}"


def compare(given: argparse.Namespace, algorithm: str, precision: str, rows: Path) -> Comparison:
    """Alternating runs."""
    sides = ["ours"] if algorithm == "ppo" else ["ours", *given.peers]
    pairs, ceilings = [], []
    for number in range(given.pairs):
        ceilings.append(gemm_flops(precision))
        pair = {}
        for side in sides if number % 2 == 0 else reversed(sides):
            with tempfile.TemporaryDirectory() as scratch:
                job = Job(side, algorithm, precision, given.model, str(rows), given.steps, scratch, f"{scratch}/told")
                pair[side] = play(job)
        pairs.append({side: pair[side] for side in sides})
    return Comparison(algorithm, precision, tuple(pairs), tuple(ceilings), parameters(given.model))


def write_prompts(source: Path | None, target: Path) -> None:
    """As both sides read them."""
    if source is None:
        asked = [f"What is {i} + {7 * i}? Explain how you found it." for i in range(256)]
    else:
        with source.open(encoding="utf-8") as file:
            asked = [json.loads(line)["question"] for line in islice(file, 256)]
    target.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked), encoding="utf-8")


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--algorithms", nargs="+", default=list(OPERATIONS), choices=list(OPERATIONS))
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--peers", nargs="+", default=["trl", "trl-best"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    done = []
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "prompts.jsonl"
        write_prompts(given.rows, rows)
        for algorithm in given.algorithms:
            for precision in given.precisions:
                done.append(compare(given, algorithm, precision, rows))
                for row in done[-1].rows():
                    print(" ".join(row), flush=True)
                if given.json:
                    given.json.write_text(json.dumps([asdict(c) for c in done], indent=2) + "\n", encoding="utf-8")
    heads = (
        "run", "step s", "x", f"{given.steps} steps s", "x", f"{LONG_RUN} steps s (extrapolated)", "x", "tokens/s",
        "answer", "GB", "of ceiling",
    )  # fmt: skip
    table = Table(*heads)
    for comparison in done:
        for row in comparison.rows():
            table.add_row(*row)
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
