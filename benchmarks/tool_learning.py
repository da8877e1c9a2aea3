"""Learning curves of tool use: GRPO in the calculator and the search environment, beside a control without the tool.

    python -m benchmarks.tool_learning --model SMOLLM2 --folder RUNS [--steps 12] [--json F] [--figure F.svg]

SFT on examples of which three in ten call the tool as they should (`SHOWN`, benchmarks/tool_tasks.py) makes the start,
one for everything. From it each seed is trained twice for each task: in the environment, and on prompts that show the
same tools while nobody answers a call, where a rule compares the answer. Held-out questions are answered once before
and once after, at the training temperature. What is finished in RUNS is not run again, so a stopped one goes on.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from raylign.cluster.session import Session, session
from raylign.conf.schema import ClusterConfig
from raylign.records.run_folder import RunPaths

from benchmarks.online_curves import SHORT_SFT, Learned, finished, learned, report, write
from benchmarks.tool_tasks import Shares, Task, calculator, examples, prompts, search

SIZES = (200, 160, 64)
"""Questions of a task: in examples, to train on, held out."""
SHOWN = Shares(right=0.3, slipped=0.2)
RULES = {"calculator": "number_match", "search": "truth_pattern"}
"""What the control is paid by: the comparison that the environment makes."""
WITH, WITHOUT = "tool", "control"


def start(model: str, tasks: Sequence[Task], folder: Path, ray_session: Session) -> RunPaths:
    """The model that all runs begin with."""
    draw = random.Random(0)
    rows = [row for task in tasks for row in examples(task, draw, SHOWN)]
    draw.shuffle(rows)
    settings = [
        *SHORT_SFT, f"policy.model={model}", "data.chat_template=hermes", "data.max_length=512", "num_steps=28",
        f"data.train={write(iter(rows), folder / 'examples.jsonl')}",
    ]  # fmt: skip
    return finished(settings, folder, "start", ray_session)


def settings_of(task: Task, arm: str, seed: int, folder: Path) -> list[str]:
    """Of one run; the two arms differ in who answers a call."""
    tools = () if arm == WITH else task.tools
    files = {
        part: write(prompts(asked, tools), folder / f"{task.name}-{arm}-{part}.jsonl")
        for part, asked in (("train", task.train), ("held_out", task.held_out))
    }
    given = [
        "+experiment=grpo_tools_cpu", f"policy.model={folder / 'start'}", f"data.train={files['train']}",
        f"data.eval={files['held_out']}", f"evaluation.seed={seed}", f"seed={seed}",
    ]  # fmt: skip
    if arm == WITHOUT:
        return [*given, f"reward.rules=[{{rule: {RULES[task.name]}}}]"]
    documents = [f"environment.arguments.documents={folder / 'documents'}"] if task.name == "search" else []
    return [*given, f"environment={task.name}", "environment.max_turns=4", *documents]


def measured(given: argparse.Namespace, tasks: Sequence[Task]) -> Iterator[Learned]:
    """Every run, one after another, on one Ray."""
    with ExitStack() as stack:
        ray_session = stack.enter_context(session(ClusterConfig(object_store_gb=1.0), num_cpus=4.0))
        start(given.model, tasks, given.folder, ray_session)
        for task, seed, arm in product(tasks, given.seeds, given.arms):
            if task.name in given.tasks:
                settings = settings_of(task, arm, seed, given.folder)
                settings += [f"num_steps={given.steps}", f"evaluation.prompts={given.held_out}"]
                name = f"{task.name}-{arm}-{seed}"
                paths = finished(settings, given.folder, name, ray_session)
                yield learned(task.name, arm, seed, paths, ["rollout/turns"] if arm == WITH else [])


def main() -> int:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--arms", nargs="+", default=[WITH, WITHOUT], choices=[WITH, WITHOUT])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--held-out", type=int, default=48, help="questions answered before and after")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    given.folder = given.folder.absolute()
    draw = random.Random(0)
    tasks = [calculator(draw, SIZES), search(draw, SIZES, given.folder / "documents")]
    report(measured(given, tasks), given.json, given.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
