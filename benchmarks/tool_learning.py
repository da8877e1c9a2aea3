"""Learning curves of tool use: GRPO in the calculator and the search environment, beside a control without the tool.

    python -m benchmarks.tool_learning --model SMOLLM2 --folder RUNS [--steps 12] [--json F] [--figure F.svg]

SFT on examples of which three in ten call the tool as they should (`SHOWN`, benchmarks/tool_tasks.py) makes the start,
one for everything. From it each seed is trained twice for each task: in the environment, and on prompts that show the
same tools while nobody answers a call, where a rule compares the answer. Held-out questions are answered once before
and once after, at the training temperature. What is finished in RUNS is not run again, so a stopped one goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TypeVar

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
from raylign.app.configuration import compose
from raylign.app.main import run as train
from raylign.cluster.session import Session, session
from raylign.conf.schema import ClusterConfig
from raylign.evals.statistics import Figure, Range, difference, figure
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths
from raylign.records.summary import read_summary
from rich.console import Console
from rich.table import Table

from benchmarks.tool_tasks import Shares, Task, calculator, examples, prompts, search, write

SIZES = (200, 160, 64)
"""Questions of a task: in examples, to train on, held out."""
SHOWN = Shares(right=0.3, slipped=0.2)
RULES = {"calculator": "number_match", "search": "truth_pattern"}
"""What the control is paid by: the comparison that the environment makes."""
WITH, WITHOUT = "tool", "control"
CONFIDENCE = 0.95
SHARES = Range(0.0, 1.0)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Learned:
    """One run."""

    task: str
    arm: str
    seed: int
    before: Figure  # share of held-out questions that are answered right
    after: Figure
    change: Figure  # paired
    curve: list[float]  # mean reward of each step
    turns: list[float]  # of an episode, mean of each step; empty for the control
    seconds: float


def start(model: str, tasks: Sequence[Task], folder: Path, ray_session: Session) -> RunPaths:
    """The model that all runs begin with."""
    draw = random.Random(0)
    rows = [row for task in tasks for row in examples(task, draw, SHOWN)]
    draw.shuffle(rows)
    settings = [
        "+experiment=sft_tiny_cpu", f"policy.model={model}", "data.chat_template=hermes", "data.max_length=512",
        f"data.train={write(iter(rows), folder / 'examples.jsonl')}", "num_steps=28",
        "algorithm.rows_per_update=8", "policy.precision=bfloat16", "policy.num_ranks=1", "policy.threads_per_rank=2",
        "policy.micro_batch_tokens=2048", "policy.lora.rank=16", "policy.optim.lr=1e-3",
        "policy.optim.schedule=linear", "cluster.object_store_gb=1.0",
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


def finished(settings: list[str], folder: Path, name: str, ray_session: Session) -> RunPaths:
    """The run of that name, now or from an earlier call."""
    paths = RunPaths(folder / name)
    if not paths.summary.exists():
        given = [*settings, f"run_root={folder}", f"name={name}", "tracking.wandb=disabled"]
        train(compose(given), console=Console(), ray_session=ray_session)
    return paths


def learned(task: str, arm: str, seed: int, paths: RunPaths) -> Learned:
    """The figures of a finished run."""
    rows = [json.loads(line) for line in paths.answers.read_text(encoding="utf-8").split("\n") if line]
    before, after = (
        np.array([row[f"reward_{when}"] for row in rows], dtype=np.float64) for when in ("before", "after")
    )
    steps = [row.values for row in read_history(paths.metrics).rows if row.step > 0]
    return Learned(
        task, arm, seed,
        before=_known(figure(before, SHARES, confidence=CONFIDENCE)),
        after=_known(figure(after, SHARES, confidence=CONFIDENCE)),
        change=_known(difference(after, before, SHARES, confidence=CONFIDENCE)),
        curve=[_known(values["reward/mean"]) for values in steps],
        turns=[_known(values["rollout/turns"]) for values in steps] if arm == WITH else [],
        seconds=read_summary(paths.summary).seconds_total,
    )  # fmt: skip


def over_seeds(runs: Sequence[Learned]) -> Figure:
    """The mean change of runs that differ in their seed; Student's interval."""
    changes = np.array([run.change.value for run in runs], dtype=np.float64)
    return _known(figure(changes, Range(-1.0, 1.0), confidence=CONFIDENCE))


def table_of(runs: Sequence[Learned]) -> Table:
    """A line a run, and one for the seeds of an arm together."""
    table = Table("task", "arm", "seed", "right before", "right after", "change", "turns, first and last", "seconds")
    for task, arm in dict.fromkeys((run.task, run.arm) for run in runs):
        seeds = [run for run in runs if (run.task, run.arm) == (task, arm)]
        for run in seeds:
            turns = f"{run.turns[0]:.2f} {run.turns[-1]:.2f}" if run.turns else "1"
            shares = [_shown(found) for found in (run.before, run.after, run.change)]
            table.add_row(task, arm, str(run.seed), *shares, turns, f"{run.seconds:.0f}")
        means = [f"{fmean(getattr(run, when).value for run in seeds):.3f}" for when in ("before", "after")]
        table.add_row(task, arm, "all", *means, _shown(over_seeds(seeds)), "", "", end_section=True)
    return table


def draw_curves(runs: Sequence[Learned], path: Path) -> None:
    """A panel a task: the mean reward of each step, a line a seed, and the held-out share before and after."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "raylign", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(run.task for run in runs))
    canvas, axes = pyplot.subplots(1, len(tasks), figsize=(4.4 * len(tasks), 3.2), layout="constrained", squeeze=False)
    colours = {WITH: "#0f766e", WITHOUT: "#d97706"}
    for axis, task in zip(axes[0], tasks, strict=True):
        shown = [run for run in runs if run.task == task]
        for run in shown:
            first = next(one for one in shown if one.arm == run.arm) is run
            steps = range(1, len(run.curve) + 1)
            axis.plot(steps, run.curve, color=colours[run.arm], lw=1, alpha=0.6, label=run.arm if first else None)
            ends = [run.before.value, run.after.value]
            axis.plot([0, len(run.curve) + 1], ends, color=colours[run.arm], marker="o", ms=4, ls="")
        axis.set_title(task, loc="left", fontsize=10)
        axis.set_xlabel("GRPO steps (dots: held-out)")
        axis.set_ylabel("share answered right")
        axis.set_ylim(-0.03, 1.03)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _shown(found: Figure) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.3f}"
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _known(value: T | None) -> T:
    assert value is not None, "the run has not told it"
    return value


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
                yield learned(task.name, arm, seed, finished(settings, given.folder, name, ray_session))


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
    console, done = Console(), list[Learned]()
    for run in measured(given, tasks):
        done.append(run)
        console.print(table_of(done))
        if given.json:
            given.json.write_text(json.dumps([asdict(one) for one in done], indent=1) + "\n", encoding="utf-8")
        if given.figure:
            draw_curves(done, given.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
