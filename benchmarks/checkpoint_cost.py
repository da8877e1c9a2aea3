"""What a checkpoint costs a run: the step that it is written beside, against the others, from telling to telling.

    python benchmarks/checkpoint_cost.py [--ranks 2] [--steps 9] [--every 3]

SFT of SmolLM2-135M (float32 masters and two moments: 1.6 GB) on CPU. The write takes processor time from the step that
it is beside, and that step's update waits for it; the last checkpoint, which is waited for, is no part of the figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

from raylign.data.sample_model import prepare_sample_model
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths

DEADLINE_S = 1800
ROWS = 64
ANSWER = "A river is a natural stream of water that flows towards a lake or the sea. " * 8


def settings(folder: Path, *, ranks: int, steps: int, every: int) -> list[str]:
    rows = folder / "rows.jsonl"
    model = prepare_sample_model()
    row = {"messages": [{"role": "user", "content": "What is a river?"}, {"role": "assistant", "content": ANSWER}]}
    rows.write_text("".join(json.dumps(row) + "\n" for _ in range(ROWS)))
    return [
        "+experiment=sft_tiny_cpu", f"policy.model={model}", f"data.train={rows}", f"run_root={folder}",
        "name=cost", f"num_steps={steps}", f"checkpoint.every={every}", f"policy.num_ranks={ranks}",
        "tracking.wandb=disabled", "algorithm.rows_per_update=16",
    ]  # fmt: skip


def arrivals(run: RunPaths, process: subprocess.Popen[bytes]) -> dict[int, float]:
    """When each step was told, by the monotonic clock."""
    seen: dict[int, float] = {}
    deadline = time.monotonic() + DEADLINE_S
    while process.poll() is None and time.monotonic() < deadline:
        for row in read_history(run.metrics).rows:
            seen.setdefault(row.step, time.monotonic())
        time.sleep(0.01)
    return seen


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    for name, usual in (("ranks", 2), ("steps", 9), ("every", 3)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        given = settings(folder, ranks=asked.ranks, steps=asked.steps, every=asked.every)
        process = subprocess.Popen([Path(sys.executable).with_name("raylign"), "train", *given])
        run = RunPaths(folder / "cost")
        told = arrivals(run, process)
        rows = {row.step: row.values["time/step"] or 0.0 for row in read_history(run.metrics).rows}
        saved = sum(p.stat().st_size for p in run.checkpoints.glob("step-*/policy/*")) / 1e9
    whole = {step: told[step] - told[step - 1] for step in rows if step - 1 in told}
    beside = [seconds for step, seconds in whole.items() if (step - 1) % asked.every == 0]
    rest = [seconds for step, seconds in whole.items() if (step - 1) % asked.every]
    print(f"steps: {mean(list(rows.values())[1:]):.1f} s each by their own clock; {saved:.2f} GB kept in checkpoints")
    print(f"steps with a checkpoint written beside them: {', '.join(f'{s:.1f}' for s in beside)} s")
    print(f"other steps: {', '.join(f'{s:.1f}' for s in rest)} s; ratio {mean(beside) / mean(rest):.3f}")


if __name__ == "__main__":
    main()
