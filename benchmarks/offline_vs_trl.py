"""SFT, DPO, KTO and reward-model training against TRL: same machine, rows, token ids, order and precision.

    python -m benchmarks.offline_vs_trl --model FOLDER [--rows FILE] [--steps 2] [--pairs 3] [--ranks 1 2] [--json FILE]

`--rows`: GSM8K's `question`, `answer` as JSONL; generated sums without it. Each side trains in its own processes, sides
alternate; TRL with default settings, which is compared in losses, is run in the first pair only. Tokens are those that
are no padding; optimizer steps and reference log-probs are included, the first step (two in bfloat16) is not counted.
The losses of the first step are compared, before an optimizer can drift, and those of all steps, since a first loss
against an equal reference shows little: beyond `FIRST`, or beyond `LATER` and what TRL's own two settings differ by, a
comparison is void. TRL's settings are in offline_sides/peer.py. The share of the
ceiling is 6 operations a parameter and token over the speed of a 2048^3 product measured before the same pair.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from multiprocessing.pool import AsyncResult
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from raylign.cluster.runtime_env import RoleEnv
from raylign.conf.schema import Device
from rich.console import Console
from rich.table import Table

from benchmarks.offline_sides import ours, peer
from benchmarks.offline_sides.common import ROWS_PER_STEP, Job, Outcome

FIRST = {"float32": 1e-4, "bfloat16": 2e-2}
LATER = {"float32": 1e-3, "bfloat16": 2e-2}
"""Relative differences of losses that are rounding."""
GEMM_SIZE = 2048
RUN_DEADLINE_S = 7200.0


@dataclass(frozen=True, slots=True)
class Run:
    """One side's ranks together."""

    tokens_per_s: float
    cached_tokens_per_s: float  # with reference log-probs at hand, as in a second epoch
    memory_gb: float  # of all ranks, beyond libraries and models
    losses: tuple[float, ...]
    held_out: tuple[float, ...]  # of the first rank


def play(job: Job) -> Run:
    """In fresh processes: ours with a learner's environment, TRL's with the machine's own and all its threads."""
    threads = max(1, (os.cpu_count() or 1) // job.ranks)
    mine = (
        RoleEnv(Device.cpu, threads, keeps_pages=True, own_cores=True).variables()
        if job.side == "ours"
        else {"OMP_NUM_THREADS": str(threads)}
    )
    before = {key: os.environ.get(key) for key in mine}
    os.environ.update(mine)
    try:
        with tempfile.TemporaryDirectory() as scratch, multiprocessing.get_context("spawn").Pool(job.ranks) as pool:
            port, side = _free_port(), ours.run if job.side == "ours" else peer.run
            own = replace(job, scratch=scratch)
            ranks = _all_of([pool.apply_async(side, (own, r, port)) for r in range(job.ranks)])
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key)
            else:
                os.environ[key] = value
    return _together(ranks)


def _all_of(pending: list[AsyncResult[Outcome]]) -> list[Outcome]:
    """Every rank's outcome, or at once the first one's error: the others would wait for it."""
    deadline = time.monotonic() + RUN_DEADLINE_S
    while not all(one.ready() for one in pending):
        for failed in (one for one in pending if one.ready() and not one.successful()):
            failed.get()
        if time.monotonic() > deadline:
            raise TimeoutError(f"a run has taken longer than {RUN_DEADLINE_S:.0f} s")
        time.sleep(0.2)
    return [one.get() for one in pending]


def _together(ranks: list[Outcome]) -> Run:
    steps_s, reference_s = max(rank.seconds for rank in ranks), max(rank.reference_s for rank in ranks)
    tokens = ranks[0].tokens
    memory = sum(rank.memory_gb for rank in ranks)
    return Run(tokens / (steps_s + reference_s), tokens / steps_s, memory, ranks[0].losses, ranks[0].held_out)


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def gemm_flops(precision: str) -> float:
    """Operations a second of a square product, in this process."""
    import torch

    left, right = torch.randn(2, GEMM_SIZE, GEMM_SIZE).to(getattr(torch, precision))
    times = []
    for _ in range(7):
        started = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - started)
    return float(2 * GEMM_SIZE**3 / statistics.median(times))


def parameters(model: str) -> int:
    """Of the model folder, tied ones once."""
    from safetensors import safe_open

    count = 0
    for file in Path(model).glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            count += sum(int(opened.get_tensor(name).numel()) for name in opened.keys())  # noqa: SIM118
    return count


@dataclass(frozen=True, slots=True)
class Comparison:
    """All pairs of one algorithm, precision and number of ranks."""

    algorithm: str
    precision: str
    ranks: int
    runs: tuple[dict[str, Run], ...]
    ceiling_flops: tuple[float, ...]  # before each pair
    num_parameters: int

    def speed(self, side: str) -> float:
        """Median tokens a second."""
        return statistics.median(run[side].tokens_per_s for run in self.runs if side in run)

    def memory(self, side: str) -> float:
        """Median GB."""
        return statistics.median(run[side].memory_gb for run in self.runs if side in run)

    @property
    def best(self) -> str:
        """TRL's faster side."""
        return max((side for side in self.runs[0] if side != "ours"), key=self.speed)

    @property
    def ratios(self) -> list[float]:
        """Ours over TRL's best, pair by pair."""
        return [run["ours"].tokens_per_s / run[self.best].tokens_per_s for run in self.runs if self.best in run]

    @property
    def share(self) -> float:
        """Of the ceiling."""
        speeds = (run["ours"].tokens_per_s for run in self.runs)
        shares = [speed / ceiling for speed, ceiling in zip(speeds, self.ceiling_flops, strict=True)]
        return 6 * self.num_parameters * statistics.median(shares)

    def loss_gaps(self, side: str) -> list[float]:
        """Relative difference of a side's losses from default TRL's, step by step; the largest of all runs."""
        theirs = self.runs[0]["trl"].losses
        mine = [run[side].losses for run in self.runs if side in run]
        return [max(abs(losses[i] - loss) / abs(loss) for losses in mine) for i, loss in enumerate(theirs)]

    @property
    def void(self) -> bool:
        """The two sides did not compute the same thing."""
        (first, *later), (_, *own_later) = self.loss_gaps("ours"), self.loss_gaps("trl-best")
        same_first = first <= FIRST[self.precision]
        return not (same_first and max(later) <= max(LATER[self.precision], *own_later))

    def row(self) -> tuple[str, ...]:
        """Of the table."""
        cached = statistics.median(run["ours"].cached_tokens_per_s for run in self.runs)
        ratios, memory = self.ratios, self.memory("ours")
        return (
            f"{self.algorithm} {self.precision} x{self.ranks}", f"{self.speed('ours'):.0f}", f"{cached:.0f}",
            f"{self.speed('trl'):.0f}", f"{self.speed('trl-best'):.0f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})", f"{self.share:.0%}",
            f"{memory:.1f}", f"{self.memory('trl'):.1f}", f"{self.memory('trl-best'):.1f}",
            f"{memory / self.memory(self.best):.2f}",
            _told(self.loss_gaps("ours")) + (" VOID" if self.void else ""), _told(self.loss_gaps("trl-best")),
        )  # fmt: skip


def _told(gaps: list[float]) -> str:
    return f"{gaps[0]:.0e} {max(gaps):.0e}"


def compare(given: argparse.Namespace, algorithm: str, precision: str, ranks: int) -> Comparison:
    """Alternating runs."""
    runs, ceilings = [], []
    for pair in range(given.pairs):
        ceilings.append(gemm_flops(precision))
        sides = ("ours", "trl-best") if pair else ("ours", "trl", "trl-best")
        jobs = {s: Job(s, algorithm, precision, ranks, given.model, given.rows, given.steps) for s in sides}
        runs.append({side: play(job) for side, job in jobs.items()})
    return Comparison(algorithm, precision, ranks, tuple(runs), tuple(ceilings), parameters(given.model))


def write_sums(folder: str) -> str:
    """Rows for when no real ones are at hand."""
    path = Path(folder) / "sums.jsonl"
    rows = (
        {"question": f"What is {i} + {7 * i}? " * (1 + i % 3), "answer": f"{i} + {7 * i} is {8 * i}. " * (4 + i % 7)}
        for i in range(400)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def main() -> int:
    """Measure, print the table, write the JSON; 1 when a comparison is void."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows")
    parser.add_argument("--algorithms", nargs="+", default=list(ROWS_PER_STEP), choices=list(ROWS_PER_STEP))
    parser.add_argument("--precisions", nargs="+", default=list(FIRST))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    done = []
    with tempfile.TemporaryDirectory() as folder:
        given.rows = given.rows or write_sums(folder)
        for ranks in given.ranks:
            for algorithm in given.algorithms:
                for precision in given.precisions:
                    done.append(compare(given, algorithm, precision, ranks))
                    print(" ".join(done[-1].row()), flush=True)
                    if given.json:
                        given.json.write_text(json.dumps([asdict(c) for c in done], indent=2) + "\n", encoding="utf-8")
    heads = (
        "run", "ours tok/s", "cached", "TRL", "TRL best", "x best (range)", "of ceiling", "GB", "TRL GB",
        "best GB", "of best", "loss gap: first, any", "TRL's own",
    )  # fmt: skip
    table = Table(*heads)
    for comparison in done:
        table.add_row(*comparison.row())
    Console(width=170).print(table)
    return int(any(comparison.void for comparison in done))


if __name__ == "__main__":
    sys.exit(main())
