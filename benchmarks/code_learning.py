"""Learning curve of the code reward: GRPO on small Python functions whose tests are run in the sandbox.

    python -m benchmarks.code_learning --model SMOLLM2 --folder RUNS [--seeds 0 1 2] [--steps 20] [--json F]

SFT on a third of the shipped functions (reward/sandbox/toy_functions.py), with answers of which a part is right
(`SHOWN`), makes the start. From it each seed is trained on the second third. The last third is answered once
before and once after, at the training temperature; an answer counts when all tests of its row pass. What is finished
in RUNS is not run again.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from raylign.cluster.session import Session, session
from raylign.conf.schema import ClusterConfig
from raylign.reward.sandbox.toy_functions import ToyFunction, toy_functions

from benchmarks.online_curves import SHORT_SFT, Learned, finished, learned, report, write

SHOWN = 0.35
"""Share of right answers among the examples; the others print, return another number, or are not in a block."""
PASSED = "reward/code/passed"


def examples(tasks: Sequence[ToyFunction], draw: random.Random) -> Iterator[dict[str, Any]]:
    """Rows for supervised training."""
    for task in tasks:
        wrong = (
            task.answer(f"print({task.expression})"),
            task.answer(f"return {task.argument}"),
            f"{task.name} returns {task.meaning}.",
        )
        told = task.right if draw.random() < SHOWN else draw.choice(wrong)
        yield {"prompt": [{"role": "user", "content": task.prompt}],
               "completion": [{"role": "assistant", "content": told}]}  # fmt: skip


def start(model: str, tasks: Sequence[ToyFunction], passes: int, folder: Path, ray_session: Session) -> None:
    """The model that all seeds begin with: each task is shown `passes` times, with an answer drawn anew."""
    draw = random.Random(0)
    shown = draw.sample([*tasks] * passes, len(tasks) * passes)
    settings = [
        *SHORT_SFT, f"policy.model={model}", "data.max_length=192", "num_steps=0", "num_epochs=1",
        f"data.train={write(examples(shown, draw), folder / 'examples.jsonl')}",
    ]  # fmt: skip
    finished(settings, folder, "start", ray_session)


def measured(given: argparse.Namespace) -> Iterator[Learned]:
    """Every seed, one after another, on one Ray."""
    tasks = random.Random(0).sample(every := list(toy_functions()), len(every))
    third = len(tasks) // 3
    parts = {"train": tasks[third : 2 * third], "held_out": tasks[2 * third :]}
    files = {name: write((task.row() for task in part), given.folder / f"{name}.jsonl") for name, part in parts.items()}
    with session(ClusterConfig(object_store_gb=1.0), num_cpus=4.0) as ray_session:
        start(given.model, tasks[:third], given.passes, given.folder, ray_session)
        for seed in given.seeds:
            settings = [
                "+experiment=grpo_code_cpu", f"policy.model={given.folder / 'start'}", f"data.train={files['train']}",
                f"data.eval={files['held_out']}", f"evaluation.prompts={len(parts['held_out'])}",
                f"evaluation.seed={seed}", f"seed={seed}", f"num_steps={given.steps}",
            ]  # fmt: skip
            paths = finished(settings, given.folder, f"code-{seed}", ray_session)
            yield learned("Python functions", "reward.code", seed, paths, [PASSED])


def main() -> int:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    given.folder = given.folder.absolute()
    report(measured(given), given.json, given.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
