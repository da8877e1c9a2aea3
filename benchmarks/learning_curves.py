"""Held-out curves of SFT and reward-model training beside TRL's: same rows, ids, order, learning rate and precision.

    python -m benchmarks.learning_curves --model FOLDER --data ../shared/data [--steps 300] [--json F] [--figure F.svg]

SFT learns GSM8K's worked answers and is asked for its loss on test rows; a reward model learns to tell models' right
solutions from wrong ones and is asked about other questions. Held-out figures are each side's own: ours by the
learner's evaluation over packed batches, TRL's by transformers' forward, row by row.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from rich.console import Console
from rich.table import Table

from benchmarks.offline_sides.common import WARM_UP, Job
from benchmarks.offline_vs_trl import Run, play

LOOKS = {"sft": 10, "rm": 2}
"""Looks at the held-out rows, besides the one before training."""
BATCH = {"sft": 1, "rm": 4}
HELD_OUT = {"sft": 24, "rm": 120}


def right_beside_wrong(path: Path) -> Iterator[dict[str, str]]:
    """One pair a question: its first right solution by a model, and its first wrong one."""
    for line in path.open(encoding="utf-8"):
        row = json.loads(line)
        given = [value for value in row.values() if isinstance(value, dict)]
        right, wrong = ([g["solution"] for g in given if bool(g["is_correct"]) == good] for good in (True, False))
        if right and wrong:
            yield {"question": row["question"], "answer": right[0], "worse": wrong[0]}


def jobs(given: argparse.Namespace, folder: Path) -> Iterator[Job]:
    """Of our side; TRL's differ in `side` alone."""
    for algorithm in given.algorithms:
        steps = given.steps
        train, test = given.data / "gsm8k_train.jsonl", given.data / "gsm8k_test_first300.jsonl"
        count = HELD_OUT[algorithm]
        if algorithm == "rm":
            pairs = list(right_beside_wrong(given.data / "gsm8k_model_solutions_first900.jsonl"))
            test, train = (folder / name for name in ("rm-test.jsonl", "rm-train.jsonl"))
            _write(test, pairs[:count])
            _write(train, pairs[count:])
            steps = min(steps, (len(pairs) - count) // BATCH["rm"])
        else:
            kept = folder / "sft-test.jsonl"
            _write(kept, [json.loads(line) for line in test.open(encoding="utf-8")][:count])
            test = kept
        yield Job(
            "ours", algorithm, given.precision, 1, given.model, str(train), steps - WARM_UP[given.precision],
            BATCH[algorithm], str(test), max(1, steps // LOOKS[algorithm]),
        )  # fmt: skip


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def table_of(job: Job, sides: dict[str, Run]) -> Table:
    """A row a look."""
    told = "held-out accuracy" if job.algorithm == "rm" else "held-out loss, nats a token"
    table = Table("steps", *sides, title=f"{job.algorithm} {job.precision}: {told}")
    for i, figures in enumerate(zip(*(run.held_out for run in sides.values()), strict=True)):
        table.add_row(str(i * job.eval_every), *(f"{figure:.4f}" for figure in figures))
    table.add_row("tokens/s", *(f"{run.tokens_per_s:.0f}" for run in sides.values()))
    return table


def draw(done: list[tuple[Job, dict[str, Run]]], path: Path) -> None:
    """A panel a job."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "raylign", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(done), figsize=(4.4 * len(done), 3.2), layout="constrained", squeeze=False)
    styles = {"ours": {"color": "#0f766e", "marker": "o"}, "trl": {"color": "#d97706", "marker": "x", "ls": "--"}}
    for axis, (job, sides) in zip(axes[0], done, strict=True):
        for side, run in sides.items():
            steps = [i * job.eval_every for i in range(len(run.held_out))]
            axis.plot(steps, run.held_out, label=side, **styles[side])
        axis.set_title(f"{job.algorithm}, {job.precision}", loc="left", fontsize=10)
        axis.set_xlabel("optimizer steps")
        axis.set_ylabel("held-out accuracy" if job.algorithm == "rm" else "held-out loss, nats a token")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> int:
    """Train both sides, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--algorithms", nargs="+", default=["sft", "rm"], choices=["sft", "rm"])
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    console, done = Console(), []
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs(given, Path(folder)):
            sides = {side: play(replace(job, side=side)) for side in ("ours", "trl")}
            done.append((job, sides))
            console.print(table_of(job, sides))
            if given.json:
                told = [{"job": asdict(job), **{s: asdict(r) for s, r in sides.items()}} for job, sides in done]
                given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            if given.figure:
                draw(done, given.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
